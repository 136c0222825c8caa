"""``clusterkit etcd``: the embedded server in the foreground."""

from __future__ import annotations
