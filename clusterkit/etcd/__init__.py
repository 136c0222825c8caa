"""The one place that knows gRPC and etcd3.

::

    store ──► channels ──► _etcd3 (etcd3 itself, given our messages)
      │          │    └──► _stubs (calls that etcd3 cannot make) ──► _pb
      └► watch ──┘
    translate: gRPC errors → verdicts, and the errors of clusterkit.errors
    convert: the words of clusterkit.ports ⇄ messages
    access: what a request needs of the role of etcd's user
    certificates: the TLS files as they are now
    endpoints: addresses, names of TLS files, options of connections

No gRPC or etcd3 name leaves this package.
"""

from __future__ import annotations

from .endpoints import TLSFiles
from .store import EtcdStore

__all__ = ["EtcdStore", "TLSFiles"]
