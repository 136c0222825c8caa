"""The library's log as the command shows it: a line for each warning, without tracebacks."""

from __future__ import annotations

import logging


class PlainFormatter(logging.Formatter):
    """The message, and the error if there is one, on one line; ``extra`` is for programs."""

    def format(self, record: logging.LogRecord) -> str:
        """``warning: message (error)``."""
        text = f"{record.levelname.lower()}: {record.getMessage()}"
        if record.exc_info and record.exc_info[1] is not None:
            text += f" ({record.exc_info[1]!r})"
        return text
