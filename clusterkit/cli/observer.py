"""A kit that only watches: it joins nothing, holds nothing, and its hooks see every change."""

from __future__ import annotations

import asyncio

from clusterkit import _compose
from clusterkit.config import Options
from clusterkit.hooks import Hooks
from clusterkit.sync import ClusterKit


class Observer(ClusterKit):
    """Looks like the face for threads. Partition changes of all nodes reach its hooks."""

    def __init__(self, options: Options, hooks: Hooks) -> None:
        super().__init__(hooks=hooks)
        self._resolved_options = options

    def _resolved(self) -> Options:
        return self._resolved_options

    def _assemble(self, options: Options, loop: asyncio.AbstractEventLoop | None) -> _compose.Run:
        return _compose.observer(options, self._specs())
