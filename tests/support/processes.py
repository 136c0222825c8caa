"""Processes that tests have started."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import Any


def pause(process: subprocess.Popen[Any]) -> None:
    """SIGSTOP, and returns when it has stopped.

    The signal alone is only sent: until the last thread has stopped, any of them may still take a
    lock that a test has just let go of, and then keeps it for as long as the pause lasts.
    """
    process.send_signal(signal.SIGSTOP)
    # What is reported is left in place: an end is for whoever waits for it.
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
