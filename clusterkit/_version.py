"""The version, in its one place: the build reads it from here too."""

from __future__ import annotations

__version__ = "0.1.0.dev0"
