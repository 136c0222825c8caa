"""What every tier of tests shares: how hypothesis looks for examples.

On a developer's machine each run tries new examples. In CI (``CI`` is set) the same ones are tried
each time: a red build must come from its commit. A failure prints the blob that repeats it.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# No deadline for one example: the machine may be busy, and each test has a timeout anyway.
settings.register_profile("dev", deadline=None, print_blob=True)
settings.register_profile(
    "ci",
    parent=settings.get_profile("dev"),
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],  # speaks of the machine, not of the code
)
settings.load_profile("ci" if os.environ.get("CI") else "dev")
