"""The decisions, and nothing else.

No module of this package does I/O, reads a clock, draws a random number, starts a thread or logs:
each takes values and returns values, so that every node decides alike and a test needs no server.

From bytes to hooks: ``keys`` and ``codec`` read what etcd holds, ``membership`` turns one revision
after another into the state of the cluster, ``placement`` (on ``hashing``) says who holds what,
``holdings`` who really has the data, ``plan`` which events follow, ``health`` how the cluster is.
"""
