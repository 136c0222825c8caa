"""Which process this is, told so that another process of the same machine can check on it.

A pid alone does not name a process: pids are used again, and each container has its own numbering.
With the boot id, the pid namespace and the start time it does, on Linux. Elsewhere the start time
is not known, and a process counts as running as long as its pid is used on the same host.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

from ..core.records import Process

_PROC = Path("/proc")
_abandoned: set[str] = set()


def abandon(incarnation: str) -> None:
    """Ends a life of this process that etcd could not be told the end of: the kit has stopped."""
    _abandoned.add(incarnation)


def is_abandoned(incarnation: str) -> bool:
    """Whether that was a life of this process, and is over although etcd may still know it."""
    return incarnation in _abandoned


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _namespace() -> str:
    try:
        return str((_PROC / "self/ns/pid").readlink())
    except OSError:
        return ""


def _started(pid: int) -> int:
    """The process's start in the kernel's ticks since boot; 0 if that cannot be known."""
    # The second field is the program's name in brackets, which may hold blanks and brackets.
    fields = _read(_PROC / str(pid) / "stat").rpartition(")")[2].split()
    return int(fields[19]) if len(fields) > 19 else 0


def this_process() -> Process:
    """The process that calls."""
    pid = os.getpid()
    return Process(
        boot_id=_read(_PROC / "sys/kernel/random/boot_id"),
        pid_namespace=_namespace(),
        pid=pid,
        started=_started(pid),
        host=socket.gethostname(),
    )


def is_running_here(process: Process) -> bool:
    """Whether that process certainly still runs, as far as this one can see. False if in doubt."""
    here = this_process()
    if not process.pid or process.host != here.host:
        return False
    if (process.boot_id, process.pid_namespace) != (here.boot_id, here.pid_namespace):
        return False
    if here.started:
        return _started(process.pid) == process.started != 0
    try:
        os.kill(process.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
