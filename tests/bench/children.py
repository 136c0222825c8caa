"""What is seen in processes of their own: the memory of a full pass, the time of an import."""

from __future__ import annotations

import subprocess
import sys
from statistics import median

from .common import Row, at_most

MEBIBYTES = 60.0
IMPORT_RATIO = 1.4

# ru_maxrss would begin with what the parent had at the fork; VmHWM begins with the new program.
_PEAK = """
import sys

def peak() -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

interpreter = peak()
from clusterkit.core.placement import Candidate, assign
nodes = [Candidate(f"node-{i}", 100, None) for i in range(1000)]
rows = assign(nodes, partitions=65536, replication_factor=3, cluster_seed=1)
assert "numpy" in sys.modules and len(rows) == 65536
print((peak() - interpreter) / 1024)
"""
_IMPORT = """
import time
began = time.perf_counter()
{statement}
print(time.perf_counter() - began)
"""


def rows(rounds: int) -> list[Row]:
    """The peak memory of a full pass, and the time that importing the package takes."""
    found: list[Row] = []
    if sys.platform == "linux":
        grown = median(_child(_PEAK) for _ in range(3))
        work = "full 65,536 x 1,000, numpy: peak memory beyond the interpreter's"
        target = f"at most {MEBIBYTES:g} MiB"
        found.append(
            Row(work, grown, MEBIBYTES, "MiB", grown / MEBIBYTES, target, grown <= MEBIBYTES)
        )
    sides: dict[str, list[float]] = {
        "import clusterkit": [],
        "from clusterkit import ClusterKit": [],
        "from clusterkit import ClusterKit, _compose": [],
        "import grpc, pydantic": [],
    }
    for number in range(rounds + 1):
        for statement in sorted(sides, reverse=bool(number % 2)):
            seconds = _child(_IMPORT.format(statement=statement))
            if number:  # the first may have to compile
                sides[statement].append(seconds * 1e3)
    ours, face, whole, theirs = (median(times) for times in sides.values())
    peer = "import grpc, pydantic"
    return [
        *found,
        at_most(f"import clusterkit / {peer}", ours, theirs, "ms", IMPORT_RATIO),
        at_most(f"from clusterkit import ClusterKit / {peer}", face, theirs, "ms", IMPORT_RATIO),
        # Somebody has to wait for it: who starts a kit.
        at_most(f"the same with all that start() loads / {peer}", whole, theirs, "ms", None),
    ]


def _child(program: str) -> float:
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    return float(done.stdout)
