"""The form of a file of golden vectors, and how it is written."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path


def text_of(vectors: Mapping[str, Iterable[object]]) -> str:
    """One line for each vector, so that one more is one line of difference."""
    lines = []
    for name, entries in vectors.items():
        rows = ",\n".join("  " + json.dumps(entry) for entry in entries)
        lines.append(f"{json.dumps(name)}: [\n{rows}\n]")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def main(
    about: str | None, name: str, vectors: Callable[[], Mapping[str, Iterable[object]]]
) -> int:
    """Writes the file that is called ``name``, or the one that the command line names."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("file", nargs="?", type=Path, default=Path(__file__).with_name(name))
    parser.add_argument("--force", action="store_true", help="overwrite a file that exists")
    arguments = parser.parse_args()
    try:
        with arguments.file.open("w" if arguments.force else "x", encoding="utf-8") as file:
            file.write(text_of(vectors()))
    except FileExistsError:
        print(
            f"{arguments.file} exists, and golden vectors hold for ever: data would move in every "
            "cluster. To add vectors before a release, use --force.",
            file=sys.stderr,
        )
        return 1
    return 0
