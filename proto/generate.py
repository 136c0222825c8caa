"""Regenerates the Python modules of every .proto file: ``python proto/generate.py [--check]``.

protoc comes in ``grpcio-tools`` of one pinned release, in a private environment that is made once
under ``build/proto-venv``: what it generates loads on every protobuf runtime from 3.20.3 on, and
what newer releases generate refuses older runtimes. ``--check`` writes nothing; it exits with 1
and names the files that are stale.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / "build" / "proto-venv"
# grpcio-tools 1.62 imports pkg_resources, which later releases of setuptools lack.
REQUIREMENTS = ("grpcio-tools==1.62.3", "setuptools<80")


@dataclass(frozen=True)
class Tree:
    """A folder of .proto files, and the package that their modules go to.

    ``virtual`` is the folder that the files have for protoc: what they import each other by, and
    the beginning of their descriptors' names in the registry of the process.
    """

    source: Path
    virtual: str
    package: str

    @property
    def target(self) -> Path:
        return ROOT.joinpath(*self.package.split("."))


TREES = (
    Tree(ROOT / "proto" / "etcd", "clusterkit_etcd", "clusterkit.etcd._pb"),
    Tree(ROOT / "proto" / "clusterkit" / "v1", "clusterkit/v1", "clusterkit._pb"),
)


def tools_python() -> Path:
    """The interpreter that has the pinned tools; makes its environment when it is missing."""
    python = VENV / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    stamp = VENV / "requirements.txt"
    wanted = "\n".join(REQUIREMENTS)
    if stamp.is_file() and stamp.read_text() == wanted:
        return python
    VENV.parent.mkdir(parents=True, exist_ok=True)
    lock = VENV.with_suffix(".lock")
    try:
        lock.mkdir()
    except FileExistsError:
        return _wait_for_other(stamp, wanted, lock, python)
    try:
        venv.create(VENV, clear=True, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *REQUIREMENTS], check=True)
        stamp.write_text(wanted)
    finally:
        lock.rmdir()
    return python


def _wait_for_other(stamp: Path, wanted: str, lock: Path, python: Path) -> Path:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if stamp.is_file() and stamp.read_text() == wanted:
            return python
        time.sleep(0.2)
    raise SystemExit(f"{lock} has stood for 300 s: if no other run is making {VENV}, remove it")


def generate(tree: Tree, out: Path) -> dict[Path, str]:
    """What the package of one tree should hold: file name in the package → text."""
    protos = sorted(tree.source.glob("*.proto"))
    if not protos:
        return {}
    subprocess.run(
        [
            tools_python(),
            *("-m", "grpc_tools.protoc"),
            f"-I{tree.virtual}={tree.source}",
            *(f"--{kind}_out={out}" for kind in ("python", "pyi")),
            *(f"{tree.virtual}/{proto.name}" for proto in protos),
        ],
        check=True,
    )
    # protoc takes the virtual folder for the package, where siblings are imported and where the
    # classes are told their module.
    virtual = re.escape(tree.virtual.replace("/", "."))
    own = re.compile(rf"(^from |DESCRIPTOR, '){virtual}(?= import |\.\w+_pb2')", re.MULTILINE)
    texts = {
        Path(path.name): own.sub(rf"\g<1>{tree.package}", path.read_text())
        for path in sorted((out / tree.virtual).iterdir())
    }
    for name, text in texts.items():
        if name.suffix == ".pyi":
            # A bare Mapping is an error to whoever checks this package strictly as part of theirs.
            texts[name] = text.replace(", _Mapping]", ", _Mapping[str, object]]")
    texts[Path("__init__.py")] = (
        f'"""Generated from {tree.source.relative_to(ROOT).as_posix()}/ '
        'by proto/generate.py; do not edit."""\n'
    )
    return texts


def stale_files(tree: Tree, wanted: dict[Path, str]) -> list[Path]:
    """The files of the tree's package that differ from ``wanted``, are missing or are left over."""
    there = {p.relative_to(tree.target) for p in tree.target.glob("*.py*") if p.is_file()}
    return sorted(
        tree.target / name
        for name in there | wanted.keys()
        if name not in wanted
        or name not in there
        or (tree.target / name).read_text() != wanted[name]
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Regenerate the Python modules from proto/.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if stale")
    check = parser.parse_args(argv).check
    stale: list[Path] = []
    for tree in TREES:
        with tempfile.TemporaryDirectory() as scratch:
            wanted = generate(tree, Path(scratch))
        found = stale_files(tree, wanted)
        stale += found
        if found and not check:
            shutil.rmtree(tree.target, ignore_errors=True)
            tree.target.mkdir(parents=True)
            for name, text in wanted.items():
                (tree.target / name).write_text(text)
    for path in stale:
        print(f"{'stale' if check else 'written'}: {path.relative_to(ROOT)}")
    if check and stale:
        print("run: python proto/generate.py")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
