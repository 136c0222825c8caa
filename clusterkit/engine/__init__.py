"""The running node: everything with a clock, a thread or a queue, behind the ports."""
