"""The loop of placement in C, made by the C compiler of the machine: what there is to reach."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_CODE = r"""
#include <stdint.h>

/* The three nodes with the greatest scores for each partition, the greatest first. */
void place(const uint64_t *partitions, int32_t count, const uint64_t *nodes, int32_t size,
           int32_t *found)
{
    for (int32_t p = 0; p < count; p++) {
        uint64_t first = 0, second = 0, third = 0;
        int32_t a = -1, b = -1, c = -1;
        for (int32_t n = 0; n < size; n++) {
            uint64_t x = partitions[p] ^ nodes[n];
            x ^= x >> 33;
            x *= 0xFF51AFD7ED558CCDULL;
            x ^= x >> 33;
            x *= 0xC4CEB9FE1A85EC53ULL;
            x ^= x >> 33;
            if (x <= third)
                continue;
            if (x <= second) {
                third = x; c = n;
            } else if (x <= first) {
                third = second; c = b;
                second = x; b = n;
            } else {
                third = second; c = b;
                second = first; b = a;
                first = x; a = n;
            }
        }
        found[3 * p] = a; found[3 * p + 1] = b; found[3 * p + 2] = c;
    }
}
"""


class Native:
    """The compiled loop, over some partitions and nodes."""

    def __init__(
        self, library: ctypes.CDLL, partitions: Sequence[int], nodes: Sequence[int]
    ) -> None:
        self._place = library.place
        self._partitions = (ctypes.c_uint64 * len(partitions))(*partitions)
        self._nodes = (ctypes.c_uint64 * len(nodes))(*nodes)
        self.found = (ctypes.c_int32 * (3 * len(partitions)))()

    def run(self) -> float:
        """Seconds."""
        began = time.perf_counter()
        self._place(
            self._partitions,
            ctypes.c_int32(len(self._partitions)),
            self._nodes,
            ctypes.c_int32(len(self._nodes)),
            self.found,
        )
        return time.perf_counter() - began


@contextmanager
def library() -> Iterator[ctypes.CDLL | None]:
    """The compiled loop; None if there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        source, built = Path(folder, "place.c"), Path(folder, "place.so")
        source.write_text(_CODE)
        command = [compiler, "-O3", "-shared", "-fPIC", "-o", str(built), str(source)]
        subprocess.run(command, check=True)
        yield ctypes.CDLL(str(built))
