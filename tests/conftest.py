"""What every tier of tests shares: a real etcd, and how hypothesis looks for examples.

One etcd serves all tests of a worker process; each test keeps to a prefix of its own.

On a developer's machine each run tries new examples. In CI (``CI`` is set) the same ones are tried
each time: a red build must come from its commit. A failure prints the blob that repeats it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from clusterkit.engine import identity
from clusterkit.testing import EmbeddedEtcd

# A shell without job control starts what it puts into the background with SIGINT ignored, and all
# its children inherit that: the programs that tests interrupt would never hear of it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No deadline for one example: the machine may be busy, and each test has a timeout anyway.
settings.register_profile("dev", deadline=None, print_blob=True)
settings.register_profile(
    "ci",
    parent=settings.get_profile("dev"),
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],  # speaks of the machine, not of the code
)
# Each of many hundred mutants is met with these: see tools/mutants.py.
settings.register_profile("mutants", parent=settings.get_profile("ci"), max_examples=30)
settings.load_profile("ci" if os.environ.get("CI") else "dev")


@pytest.fixture(autouse=True)
def _no_life_before_this_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a process remembers of its own past, by names that tests use again and again."""
    monkeypatch.setattr(identity, "_abandoned", set())


@pytest.fixture(scope="session")
def etcd_endpoint() -> Iterator[str]:
    with EmbeddedEtcd() as etcd:
        yield etcd.endpoint
