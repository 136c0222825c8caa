"""Images for the tests of ``deploy/``, made where no registry can be reached."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

from clusterkit.testing.embedded import find_etcd

from .servers import CommandError, docker, run

ROOT = Path(__file__).parents[2]
_BASE = "clusterkit-test-base:debian"
_CONTEXT = ("LICENSE", "README.md", ".dockerignore", "pyproject.toml", "clusterkit", "deploy")
_PROGRAM = "examples/quickstart/app.py"
_DOWNLOAD_SECONDS = 400.0
_VERSION = "import sys; print('%d.%d' % sys.version_info[:2])"


def missing(why: str) -> BaseException:
    """What ends the test: with a word where a developer may lack something, loudly in CI."""
    return pytest.fail.Exception(why) if os.environ.get("CI") else pytest.skip.Exception(why)


def base_image() -> str:
    """An image with Python: the one that TEST_PYTHON_IMAGE names, or Debian's."""
    named = os.environ.get("TEST_PYTHON_IMAGE")
    if named:
        return named
    try:
        run(ROOT / "tools" / "debian_base.sh", _BASE, seconds=_DOWNLOAD_SECONDS)
    except CommandError as e:
        raise missing(f"no base image: {e}; or name one by TEST_PYTHON_IMAGE") from e
    return _BASE


def make_context(base: str, folder: Path) -> None:
    """What the image is built from, with wheels for the Python of the base beside it."""
    for name in _CONTEXT:
        source = ROOT / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.whl")
            shutil.copytree(source, folder / name, ignore=ignored)
        else:
            shutil.copy(source, folder / name)
    (folder / _PROGRAM).parent.mkdir(parents=True)
    shutil.copy(ROOT / _PROGRAM, folder / _PROGRAM)

    version = docker("run", "--rm", base, "python3", "-c", _VERSION)
    python = next((p for p in (sys.executable, f"python{version}") if _is(p, version)), None)
    if python is None:
        raise missing(f"there is no Python {version} here, which {base} has, to make wheels for it")
    run(
        *(python, "-m", "pip", "wheel", "--quiet", f"{folder}[admin]", "pip"),
        *("--wheel-dir", folder / "deploy" / "docker" / "wheels"),
        seconds=_DOWNLOAD_SECONDS,
    )


def _is(python: str, version: str) -> bool:
    try:
        return run(python, "-c", _VERSION) == version
    except (CommandError, FileNotFoundError):
        return False


def build_members_image(tag: str) -> None:
    """An image of the shape of etcd's own: two programs, no entrypoint and no shell."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("etcd", "etcdctl"):
            shutil.copy(find_etcd().with_name(name), folder)
        (Path(folder) / "Dockerfile").write_text(
            "FROM scratch\nCOPY etcd etcdctl /usr/local/bin/\n"
        )
        docker("build", "--quiet", "--tag", tag, folder)
