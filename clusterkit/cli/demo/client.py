"""Keys written and read as a client would: to the primary that a kit which only watches names."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Protocol

from clusterkit.model import Partition

from .processes import DemoError
from .transport import Peers, Reply

WORKERS: Final = 6
PATIENCE_SECONDS: Final = 15.0
REQUEST_SECONDS: Final = 6.0


class Lookup(Protocol):
    """What the client needs of a kit."""

    def partition_for(self, key: str, /) -> Partition: ...


class Client:
    """Writes and reads through the current owners, and remembers what was acknowledged.

    A request that is refused (the owner is another, or still copying) or that fails is sent again
    to whoever owns the key then, until it succeeds.
    """

    def __init__(self, lookup: Lookup) -> None:
        self._lookup = lookup
        self._peers = Peers(REQUEST_SECONDS)
        self._acknowledged: dict[str, str] = {}
        self._closing = threading.Event()
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="demo-client")

    @property
    def known(self) -> int:
        """How many keys were ever acknowledged."""
        return len(self._acknowledged)

    def close(self) -> None:
        """Gives up what is under way."""
        self._closing.set()
        self._pool.shutdown(cancel_futures=True)

    def write(self, keys: Iterable[str], value: str) -> int:
        """Writes ``value``, with the key's name, under each key; how many, all acknowledged.

        Raises:
            DemoError: A key could not be written.
        """
        return sum(self._pool.map(lambda key: self._write_one(key, f"{key}: {value}"), keys))

    def lost(self) -> list[str]:
        """Reads back every key that was ever acknowledged; those missing or with an old value.

        Raises:
            DemoError: A key could not be read, so that nothing is known of it.
        """
        keys = sorted(self._acknowledged)
        held = self._pool.map(self._read_one, keys)
        return [
            key for key, value in zip(keys, held, strict=True) if value != self._acknowledged[key]
        ]

    def _write_one(self, key: str, value: str) -> bool:
        self._ask("PUT", key, value.encode(), {200})
        self._acknowledged[key] = value
        return True

    def _read_one(self, key: str) -> str | None:
        status, body = self._ask("GET", key, b"", {200, 404})
        return body.decode() if status == 200 else None

    def _ask(self, method: str, key: str, body: bytes, final: set[int]) -> Reply:
        give_up = time.monotonic() + PATIENCE_SECONDS
        answer = "no node owns it"
        while not self._closing.is_set():
            primary = self._lookup.partition_for(key).primary
            if primary is not None:
                try:
                    status, reply = self._peers.request(method, primary.address, f"/kv/{key}", body)
                except OSError as error:
                    answer = f"{primary.id}: {error}"
                else:
                    if status in final:
                        return status, reply
                    answer = f"{primary.id}: {status} {reply.decode()}"
            if time.monotonic() > give_up:
                raise DemoError(
                    f"{method} of {key} did not succeed within {PATIENCE_SECONDS:.0f} s: {answer}"
                )
            self._closing.wait(0.02)
        raise DemoError(f"{method} of {key} was given up: the demo is ending")
