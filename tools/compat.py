"""Runs the tests in fresh environments: the Pythons found here, and protobuf 5, 6 and 7.

Every environment gets the package as users get it, a wheel installed with ``pip``, and the tests
from a copy in which the sources are not: nothing can be imported from the working tree by chance.
In each, the unit and contract tests run (the latter against a real etcd), and then ``clusterkit
demo``, which is the whole way through: etcd, gRPC, processes, hooks.

Not the full product of versions: protobuf is what depends on its version here, so the oldest
Python gets all three, the others the newest and, in turn, one of the older ones. One more
environment, on the oldest Python, has the oldest of every dependency that is allowed.

Usage: ``python tools/compat.py [--only py3.12-protobuf6] [--keep]``. Standard library only.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
PROTOBUFS = (5, 6, 7)
TEST_TOOLS = (
    "httpx>=0.27",
    "hypothesis>=6.100",
    "pytest>=8.2",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.6",
    "schemathesis>=4.0",
)
COPIED = ("tests", "proto", "tools", "examples", "pyproject.toml")

# The package must be the installed one, not the working tree's.
WHAT_IS_THERE = """
import platform, sys
from importlib.metadata import version
import clusterkit
where = next(iter(clusterkit.__path__))
assert where.startswith(sys.prefix), where
print(platform.python_version(), *map(version, ("protobuf", "grpcio", "pydantic")))
"""


@dataclass(frozen=True)
class Cell:
    """One environment of the table."""

    name: str
    python: str
    pins: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """What became of one environment; ``versions`` are those that were really there."""

    cell: Cell
    versions: str
    result: str
    seconds: float

    @property
    def ok(self) -> bool:
        return self.result == "ok"


class StepError(Exception):
    """A step of an environment failed; its output is the second argument."""


def run(command: list[str], *, cwd: Path, timeout: float) -> str:
    """Runs a command to its end and returns what it printed, both streams in one."""
    name = f"{Path(command[0]).name} {command[1]}"
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env=env | {"CI": "true"},
            timeout=timeout,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
    except subprocess.TimeoutExpired as e:
        raise StepError(f"{name}: not done after {timeout:.0f} s", str(e.stdout or "")) from e
    if done.returncode != 0:
        raise StepError(f"{name}: exit code {done.returncode}", done.stdout)
    return done.stdout


def candidates(version: str) -> list[str]:
    """Where a Python of that version may be: on PATH, or among pyenv's."""
    found = [shutil.which(f"python{version}")]
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    if pyenv.is_dir():
        newest_first = sorted(
            (d for d in pyenv.iterdir() if re.fullmatch(re.escape(version) + r"\.\d+", d.name)),
            key=lambda d: int(d.name.rpartition(".")[2]),
            reverse=True,
        )
        found += [str(d / "bin" / f"python{version}") for d in newest_first]
    return [f for f in found if f is not None and Path(f).exists()]


def find_python(version: str) -> str | None:
    """The first candidate that really runs (a version manager's shim may not)."""
    probe = "import ensurepip, sys, venv; print('%d.%d' % sys.version_info[:2])"
    for path in candidates(version):
        try:
            said = run([path, "-c", probe], cwd=ROOT, timeout=30)
        except (StepError, OSError):
            continue
        if said.strip().endswith(version):
            return path
    return None


def choose(pythons: dict[str, str]) -> list[Cell]:
    """The cells to run, for the Pythons found (version to path, the oldest first)."""
    older = PROTOBUFS[:-1]
    cells = []
    for i, (version, path) in enumerate(pythons.items()):
        if i == 0:
            cells.append(Cell(f"py{version}-floors", path, floors()))
        wanted = PROTOBUFS if i == 0 else (older[-i % len(older)], PROTOBUFS[-1])
        cells += [Cell(f"py{version}-protobuf{p}", path, (f"protobuf=={p}.*",)) for p in wanted]
    return cells


def floors() -> tuple[str, ...]:
    """The oldest version that ``pyproject.toml`` allows of each dependency, as pins."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = [re.match(r"([\w-]+)>=([\d.]+)", text) for text in project["dependencies"]]
    return tuple(f"{m[1]}=={m[2]}.*" for m in found if m is not None)


def try_cell(cell: Cell, wheel: Path, work: Path) -> str:
    """Makes one environment, runs everything in it, and returns the versions that were there.

    Raises:
        StepError: Something failed.
    """
    home = work / cell.name
    tests = home / "copy"
    tests.mkdir(parents=True)
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tests / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy2(source, tests / name)
    run([cell.python, "-m", "venv", str(home / "venv")], cwd=home, timeout=120)
    bin_dir = home / "venv" / "bin"
    python = str(bin_dir / "python")
    requirements = [f"{wheel}[admin,cli,embedded]", *cell.pins, *TEST_TOOLS]
    quiet = ["--quiet", "--disable-pip-version-check"]
    run([python, "-m", "pip", "install", *quiet, *requirements], cwd=home, timeout=600)
    versions = run([python, "-c", WHAT_IS_THERE], cwd=tests, timeout=60).strip()
    # The floors bring an anyio whose plugin, which nothing here uses, the newest pytest warns of.
    # By `python -m`, so that the copy is where tests look for each other, and for tools/.
    pytest = [python, "-m", "pytest", "-p", "no:anyio", "-q", "-n", "2", "-m", "not repository"]
    run([*pytest, "tests/unit", "tests/contract"], cwd=tests, timeout=600)
    run([str(bin_dir / "clusterkit"), "demo", "--json"], cwd=tests, timeout=180)
    return versions


def attempt(cell: Cell, wheel: Path, work: Path) -> Outcome:
    """One line of the table; a failure is told at once, with the end of its output."""
    print(f"{cell.name} ...", flush=True)
    began = time.monotonic()
    versions = "-"
    result = "ok"
    try:
        versions = try_cell(cell, wheel, work)
    except StepError as e:
        what, output = e.args
        result = f"FAILED: {what}"
        print(f"{cell.name} failed: {what}\n{output[-8000:]}", flush=True)
    return Outcome(cell, versions, result, time.monotonic() - began)


def table(outcomes: list[Outcome]) -> str:
    rows = [("environment", "python, protobuf, grpcio, pydantic", "result", "seconds")]
    rows += [(o.cell.name, o.versions, o.result, f"{o.seconds:.0f}") for o in outcomes]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="Runs the tests in fresh environments.")
    parser.add_argument("--only", help="the name of one environment, such as py3.12-protobuf6")
    parser.add_argument("--keep", action="store_true", help="leave the environments behind")
    arguments = parser.parse_args()

    pythons = {v: path for v in PYTHONS if (path := find_python(v)) is not None}
    missing = [v for v in PYTHONS if v not in pythons]
    cells = [c for c in choose(pythons) if arguments.only in (None, c.name)]
    if not cells:
        print("no environment to run: no such name, or no such Python here", file=sys.stderr)
        return 2

    work = Path(tempfile.mkdtemp(prefix="clusterkit-compat-"))
    try:
        build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
        try:
            run([*build, "--wheel-dir", str(work), str(ROOT)], cwd=work, timeout=300)
        except StepError as e:
            print(f"the wheel could not be built: {e.args[0]}\n{e.args[1]}", file=sys.stderr)
            return 1
        (wheel,) = work.glob("clusterkit-*.whl")
        outcomes = [attempt(cell, wheel, work) for cell in cells]
    finally:
        if arguments.keep:
            print(f"the environments are in {work}")
        else:
            shutil.rmtree(work, ignore_errors=True)

    print(f"\n{table(outcomes)}")
    if missing:
        print(f"not found on this machine, so not run: Python {', '.join(missing)}")
    return 0 if all(o.ok for o in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
