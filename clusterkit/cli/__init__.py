"""The command ``clusterkit``. The only part of the package that uses typer and rich.

This module and :mod:`clusterkit.cli.demo` import neither, so that the demo's node processes start
quickly and a missing extra is answered with one line.
"""

from __future__ import annotations

import sys


def main() -> None:
    """The console script. Always ends the process: 0 is success, 1 that the operation failed,
    2 wrong usage, 130 that Ctrl-C ended it."""
    try:
        from .app import run
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in {"typer", "rich"}:
            raise
        print(
            f"clusterkit: the command needs the package {error.name!r}, which is not installed; "
            "install it with: pip install 'clusterkit[cli]'",
            file=sys.stderr,
        )
        sys.exit(2)
    sys.exit(run())
