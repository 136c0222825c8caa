"""``clusterkit demo``: real processes, real moves, and a count of what was lost.

Layers, from the bottom: ``store`` (one node's data) and ``transport`` (HTTP with connections that
stay open) → ``node`` (the process) → ``processes`` (starting and ending them) and ``timeline``
(what all of them said) → ``cluster`` (etcd and all of them) → ``expect`` (judges what they said) →
``scenario`` (the story) → ``client`` and ``traffic`` (keys written and read as a client would) →
``driver`` (plays the story) → ``report`` (for people, or as JSON).
"""
