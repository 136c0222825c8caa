"""Which etcd servers the node warns of."""

from __future__ import annotations

import pytest

from clusterkit.engine.errands import ends_leases_early


@pytest.mark.parametrize(
    "version, early",
    [
        ("3.3.27", True),
        ("3.4.23", True),
        ("3.4.30", True),
        ("3.4.31", False),
        ("3.4.100", False),
        ("3.5.1", True),
        ("3.5.12", True),
        ("3.5.13", False),
        ("3.5.13-rc.1", False),
        ("3.6.0", False),
        ("3.10.0", False),
        ("4.0.0", False),
        ("a build of one's own", False),
    ],
)
def test_the_servers_that_may_end_a_lease_early(version: str, early: bool) -> None:
    assert ends_leases_early(version) is early
