"""One chaos run, and a table at its end; exit code 1 if any rule was broken."""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
from pathlib import Path

from .history import load
from .run import Outcome, count, run
from .validators import validate


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, help="repeat the run of this seed; a new one if absent")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--folder", type=Path, help="where to keep the history; a new directory")
    parser.add_argument("--check", type=Path, help="only validate the history in this folder again")
    told = parser.parse_args()
    if told.check is not None:
        history = load(told.check)
        again = Outcome(0, checked=count(history), violations=validate(history))
        print(again.table())
        return bool(again.violations)
    seed = random.SystemRandom().randrange(1_000_000) if told.seed is None else told.seed
    folder = told.folder or Path(tempfile.mkdtemp(prefix="clusterkit-chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    command = f"python -m tests.chaos --seed {seed} --minutes {told.minutes:g}"
    print(f"seed {seed}; to repeat it: {command}", flush=True)
    outcome = run(folder, seed, told.minutes * 60, lambda text: print(text, flush=True))
    print(outcome.table())
    if outcome.violations:
        print(f"the history is in {folder}; validate it again with --check; repeat: {command}")
        return 1
    if told.folder is None:
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
