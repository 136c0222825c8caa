from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class NodeState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NODE_STATE_UNSPECIFIED: _ClassVar[NodeState]
    NODE_STATE_ACTIVE: _ClassVar[NodeState]
    NODE_STATE_DRAINING: _ClassVar[NodeState]

class Storage(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STORAGE_UNSPECIFIED: _ClassVar[Storage]
    STORAGE_MEMORY: _ClassVar[Storage]
    STORAGE_DISK: _ClassVar[Storage]

class LeaveReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LEAVE_REASON_UNSPECIFIED: _ClassVar[LeaveReason]
    LEAVE_REASON_HEALTH_CHECK_FAILURE: _ClassVar[LeaveReason]
    LEAVE_REASON_GRACEFUL_SHUTDOWN: _ClassVar[LeaveReason]
    LEAVE_REASON_REMOVED_BY_ADMIN: _ClassVar[LeaveReason]
    LEAVE_REASON_REPLACED: _ClassVar[LeaveReason]
NODE_STATE_UNSPECIFIED: NodeState
NODE_STATE_ACTIVE: NodeState
NODE_STATE_DRAINING: NodeState
STORAGE_UNSPECIFIED: Storage
STORAGE_MEMORY: Storage
STORAGE_DISK: Storage
LEAVE_REASON_UNSPECIFIED: LeaveReason
LEAVE_REASON_HEALTH_CHECK_FAILURE: LeaveReason
LEAVE_REASON_GRACEFUL_SHUTDOWN: LeaveReason
LEAVE_REASON_REMOVED_BY_ADMIN: LeaveReason
LEAVE_REASON_REPLACED: LeaveReason

class ClusterConfig(_message.Message):
    __slots__ = ("partitions", "replication_factor", "key_hash", "algorithm_version", "seed", "created_at", "balance_percent", "balance_primaries")
    PARTITIONS_FIELD_NUMBER: _ClassVar[int]
    REPLICATION_FACTOR_FIELD_NUMBER: _ClassVar[int]
    KEY_HASH_FIELD_NUMBER: _ClassVar[int]
    ALGORITHM_VERSION_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    BALANCE_PERCENT_FIELD_NUMBER: _ClassVar[int]
    BALANCE_PRIMARIES_FIELD_NUMBER: _ClassVar[int]
    partitions: int
    replication_factor: int
    key_hash: str
    algorithm_version: int
    seed: int
    created_at: int
    balance_percent: int
    balance_primaries: bool
    def __init__(self, partitions: _Optional[int] = ..., replication_factor: _Optional[int] = ..., key_hash: _Optional[str] = ..., algorithm_version: _Optional[int] = ..., seed: _Optional[int] = ..., created_at: _Optional[int] = ..., balance_percent: _Optional[int] = ..., balance_primaries: bool = ...) -> None: ...

class Cordon(_message.Message):
    __slots__ = ("reason", "since")
    REASON_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    reason: str
    since: int
    def __init__(self, reason: _Optional[str] = ..., since: _Optional[int] = ...) -> None: ...

class Process(_message.Message):
    __slots__ = ("boot_id", "pid_namespace", "pid", "started", "host")
    BOOT_ID_FIELD_NUMBER: _ClassVar[int]
    PID_NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    STARTED_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    boot_id: str
    pid_namespace: str
    pid: int
    started: int
    host: str
    def __init__(self, boot_id: _Optional[str] = ..., pid_namespace: _Optional[str] = ..., pid: _Optional[int] = ..., started: _Optional[int] = ..., host: _Optional[str] = ...) -> None: ...

class Registration(_message.Message):
    __slots__ = ("nonce", "incarnation", "joined_at")
    NONCE_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    JOINED_AT_FIELD_NUMBER: _ClassVar[int]
    nonce: str
    incarnation: str
    joined_at: int
    def __init__(self, nonce: _Optional[str] = ..., incarnation: _Optional[str] = ..., joined_at: _Optional[int] = ...) -> None: ...

class Departure(_message.Message):
    __slots__ = ("registration", "reason", "left_at", "left_revision", "partitions")
    REGISTRATION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    LEFT_AT_FIELD_NUMBER: _ClassVar[int]
    LEFT_REVISION_FIELD_NUMBER: _ClassVar[int]
    PARTITIONS_FIELD_NUMBER: _ClassVar[int]
    registration: Registration
    reason: LeaveReason
    left_at: int
    left_revision: int
    partitions: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, registration: _Optional[_Union[Registration, _Mapping[str, object]]] = ..., reason: _Optional[_Union[LeaveReason, str]] = ..., left_at: _Optional[int] = ..., left_revision: _Optional[int] = ..., partitions: _Optional[_Iterable[int]] = ...) -> None: ...

class Node(_message.Message):
    __slots__ = ("address", "services", "zone", "weight", "labels", "state", "storage", "registration", "previous", "bootstrap", "process")
    class ServicesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    SERVICES_FIELD_NUMBER: _ClassVar[int]
    ZONE_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    STORAGE_FIELD_NUMBER: _ClassVar[int]
    REGISTRATION_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_FIELD_NUMBER: _ClassVar[int]
    BOOTSTRAP_FIELD_NUMBER: _ClassVar[int]
    PROCESS_FIELD_NUMBER: _ClassVar[int]
    address: str
    services: _containers.ScalarMap[str, str]
    zone: str
    weight: int
    labels: _containers.ScalarMap[str, str]
    state: NodeState
    storage: Storage
    registration: Registration
    previous: Departure
    bootstrap: bool
    process: Process
    def __init__(self, address: _Optional[str] = ..., services: _Optional[_Mapping[str, str]] = ..., zone: _Optional[str] = ..., weight: _Optional[int] = ..., labels: _Optional[_Mapping[str, str]] = ..., state: _Optional[_Union[NodeState, str]] = ..., storage: _Optional[_Union[Storage, str]] = ..., registration: _Optional[_Union[Registration, _Mapping[str, object]]] = ..., previous: _Optional[_Union[Departure, _Mapping[str, object]]] = ..., bootstrap: bool = ..., process: _Optional[_Union[Process, _Mapping[str, object]]] = ...) -> None: ...

class Alive(_message.Message):
    __slots__ = ("nonce", "failing_checks")
    NONCE_FIELD_NUMBER: _ClassVar[int]
    FAILING_CHECKS_FIELD_NUMBER: _ClassVar[int]
    nonce: str
    failing_checks: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, nonce: _Optional[str] = ..., failing_checks: _Optional[_Iterable[str]] = ...) -> None: ...

class History(_message.Message):
    __slots__ = ("open", "departures")
    OPEN_FIELD_NUMBER: _ClassVar[int]
    DEPARTURES_FIELD_NUMBER: _ClassVar[int]
    open: Registration
    departures: _containers.RepeatedCompositeFieldContainer[Departure]
    def __init__(self, open: _Optional[_Union[Registration, _Mapping[str, object]]] = ..., departures: _Optional[_Iterable[_Union[Departure, _Mapping[str, object]]]] = ...) -> None: ...

class Applied(_message.Message):
    __slots__ = ("nonce", "epoch")
    NONCE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    nonce: str
    epoch: int
    def __init__(self, nonce: _Optional[str] = ..., epoch: _Optional[int] = ...) -> None: ...

class Membership(_message.Message):
    __slots__ = ("node_id", "changed_at")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    CHANGED_AT_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    changed_at: int
    def __init__(self, node_id: _Optional[str] = ..., changed_at: _Optional[int] = ...) -> None: ...

class Rebalance(_message.Message):
    __slots__ = ("node_id", "reason", "requested_at")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    REQUESTED_AT_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    reason: str
    requested_at: int
    def __init__(self, node_id: _Optional[str] = ..., reason: _Optional[str] = ..., requested_at: _Optional[int] = ...) -> None: ...
