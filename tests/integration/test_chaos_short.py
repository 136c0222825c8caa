"""A short chaos run of a fixed seed; ``make chaos`` runs longer ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.run import run

SEED = 7


@pytest.mark.timeout(150)
def test_a_short_chaos_run_breaks_no_rule(tmp_path: Path) -> None:
    outcome = run(tmp_path, SEED, 20.0)
    assert outcome.violations == [], outcome.table()
    assert outcome.observed.total() >= 4, outcome.table()
    for what in ("events", "guards", "views", "writes accepted"):
        assert outcome.checked[what] > 100, outcome.table()
