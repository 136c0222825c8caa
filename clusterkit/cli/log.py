"""The library's log as the command shows it: a line for each warning, without tracebacks."""

from __future__ import annotations

import logging


class PlainFormatter(logging.Formatter):
    """The message with the data that belongs to it, on one line."""

    def format(self, record: logging.LogRecord) -> str:
        """``warning: message (key=value, …)``."""
        data = [
            f"{name.removeprefix('ck_')}={value}"
            for name, value in vars(record).items()
            if name.startswith("ck_")
        ]
        if record.exc_info and record.exc_info[1] is not None:
            data.append(repr(record.exc_info[1]))
        text = f"{record.levelname.lower()}: {record.getMessage()}"
        return f"{text} ({', '.join(data)})" if data else text
