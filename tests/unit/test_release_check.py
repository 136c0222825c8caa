"""What the release check refuses: archives that lack something, or have too much."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from tools.release_check import (
    FOLDERS,
    IN_SDIST,
    CheckError,
    check_sdist,
    check_wheel,
    tracked,
    version,
)

pytestmark = pytest.mark.repository


def sdist(at: Path, files: set[str], name: str) -> Path:
    with tarfile.open(at / "made.tar.gz", "w:gz") as archive:
        for file in files:
            archive.addfile(tarfile.TarInfo(f"{name}/{file}"), io.BytesIO())
    return at / "made.tar.gz"


def wheel(at: Path, files: set[str], told: str) -> Path:
    with zipfile.ZipFile(at / "made.whl", "w") as archive:
        for file in files:
            archive.writestr(file, "")
        archive.writestr("clusterkit-1.dist-info/METADATA", f"Version: {told}\n")
        archive.writestr("clusterkit-1.dist-info/licenses/LICENSE", "")
    return at / "made.whl"


def test_sdists(tmp_path: Path) -> None:
    whole = tracked(*FOLDERS) | set(IN_SDIST)
    name = f"clusterkit-{version()}"
    assert check_sdist(sdist(tmp_path, whole, name)) == len(whole)
    with pytest.raises(CheckError, match=r"lacks: docs/hooks\.md$"):
        check_sdist(sdist(tmp_path, whole - {"docs/hooks.md"}, name))
    with pytest.raises(CheckError, match=r"working tree alone: build/x$"):
        check_sdist(sdist(tmp_path, whole | {"build/x"}, name))
    with pytest.raises(CheckError, match="other than that of version"):
        check_sdist(sdist(tmp_path, whole, "clusterkit-0.0"))


def test_wheels(tmp_path: Path) -> None:
    whole = tracked("clusterkit")
    assert check_wheel(wheel(tmp_path, whole, version())) == len(whole) + 2
    with pytest.raises(CheckError, match=r"lacks: clusterkit/py\.typed$"):
        check_wheel(wheel(tmp_path, whole - {"clusterkit/py.typed"}, version()))
    with pytest.raises(CheckError, match=r"beside the package: tests/x\.py$"):
        check_wheel(wheel(tmp_path, whole | {"tests/x.py"}, version()))
    with pytest.raises(CheckError, match=r"is of version 0\.0"):
        check_wheel(wheel(tmp_path, whole, "0.0"))
