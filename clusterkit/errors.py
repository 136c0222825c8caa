"""Every error that ClusterKit raises, as one tree.

::

    ClusterKitError
    ├── OptionError (also ValueError)        an option has a value that cannot work
    ├── ConfigMismatchError                  the cluster in etcd was made with other settings
    ├── NodeIdConflictError                  another live process already uses this node id
    ├── KitStateError                        the call does not fit the kit's state
    ├── HookRegistrationError                a hook was registered too late, or cannot be a hook
    ├── UnknownPartitionError (LookupError)  no partition has that id
    ├── OwnershipError                       this node may not act for the partition
    │   ├── NotOwnerError                    another node is its primary
    │   └── FencedError                      this node cannot prove that its lease is alive
    ├── StoreError                           etcd refused, or could not be asked
    │   ├── StoreUnavailableError            no endpoint answers
    │   ├── StoreTimeoutError (TimeoutError) no answer within the deadline
    │   ├── StoreAuthError                   etcd does not accept the credentials or the role
    │   └── CompactedError                   the revision asked for is no longer kept
    ├── StaleViewError                       the view of the cluster is too old to be used
    └── WaitTimeoutError (TimeoutError)      a condition did not come true in time
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .model import KitState, Node

__all__ = [
    "ClusterKitError",
    "CompactedError",
    "ConfigMismatchError",
    "FencedError",
    "HookRegistrationError",
    "KitStateError",
    "NodeIdConflictError",
    "NotOwnerError",
    "OptionError",
    "OwnershipError",
    "StaleViewError",
    "StoreAuthError",
    "StoreError",
    "StoreTimeoutError",
    "StoreUnavailableError",
    "UnknownPartitionError",
    "WaitTimeoutError",
]


class ClusterKitError(Exception):
    """The root of every error that ClusterKit raises."""


class OptionError(ClusterKitError, ValueError):
    """An option has a value that cannot work.

    Attributes:
        option: The name of the option, as the keyword argument is called.
        value: The value that was given.
    """

    def __init__(self, message: str, *, option: str, value: object) -> None:
        super().__init__(message)
        self.option = option
        self.value = value


class ConfigMismatchError(ClusterKitError):
    """The cluster in etcd was made with a setting that differs and that can never change.

    Attributes:
        option: The name of the option.
        ours: The value that this node was given.
        stored: The value that the cluster was made with.
    """

    def __init__(self, message: str, *, option: str, ours: object, stored: object) -> None:
        super().__init__(message)
        self.option = option
        self.ours = ours
        self.stored = stored


class NodeIdConflictError(ClusterKitError):
    """Another process already uses this node id, and policy or its liveness forbids taking it over.

    Attributes:
        node_id: The node id that both want.
    """

    def __init__(self, message: str, *, node_id: str) -> None:
        super().__init__(message)
        self.node_id = node_id


class KitStateError(ClusterKitError):
    """The call does not fit the state that the kit is in, such as a lookup before ``start()``.

    Attributes:
        state: The state that the kit was in.
    """

    def __init__(self, message: str, *, state: KitState) -> None:
        super().__init__(message)
        self.state = state


class HookRegistrationError(ClusterKitError):
    """A hook was registered after the start, or is not something that can be called."""


class UnknownPartitionError(ClusterKitError, LookupError):
    """No partition of this cluster has that id."""


class OwnershipError(ClusterKitError):
    """This node may not act for the partition now.

    Attributes:
        partition_id: The partition that was asked for.
        epoch: The epoch of the view in which the answer was found.
    """

    def __init__(self, message: str, *, partition_id: str, epoch: int) -> None:
        super().__init__(message)
        self.partition_id = partition_id
        self.epoch = epoch


class NotOwnerError(OwnershipError):
    """Another node is the primary of the partition.

    Attributes:
        owner: The primary in this node's view; None if nobody is.
    """

    def __init__(self, message: str, *, partition_id: str, epoch: int, owner: Node | None) -> None:
        super().__init__(message, partition_id=partition_id, epoch=epoch)
        self.owner = owner


class FencedError(OwnershipError):
    """This node cannot prove that its lease is alive, so it may own nothing."""


class StoreError(ClusterKitError):
    """etcd refused a request, or could not be asked.

    Attributes:
        retryable: True if sending the very same request again can help and can do no harm:
            it only reads, or it certainly was not applied.
    """

    def __init__(self, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.retryable = retryable


class StoreUnavailableError(StoreError):
    """No endpoint of etcd answers, or the cluster has no leader."""


class StoreTimeoutError(StoreError, TimeoutError):
    """etcd did not answer within the deadline. A write may or may not have been applied."""


class StoreAuthError(StoreError):
    """etcd does not accept the user, the password, the certificate, or the role's permissions."""


class CompactedError(StoreError):
    """The revision that was asked for has been compacted away; read the present state instead.

    Attributes:
        compact_revision: The oldest revision that etcd still keeps.
    """

    def __init__(self, message: str, *, compact_revision: int) -> None:
        super().__init__(message, retryable=False)
        self.compact_revision = compact_revision


class StaleViewError(ClusterKitError):
    """This node's view of the cluster is older than the caller allows."""


class WaitTimeoutError(ClusterKitError, TimeoutError):
    """A condition did not come true within the time that the caller gave."""
