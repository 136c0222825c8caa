"""Who takes the one kit for the other is told so."""

from __future__ import annotations

import asyncio

import pytest

import clusterkit
import clusterkit.sync
from clusterkit import KitStateError


def test_with_on_the_kit_for_asyncio() -> None:
    kit = clusterkit.ClusterKit(address="127.0.0.1:1")
    told = r"write `async with`, or take clusterkit\.sync\.ClusterKit"
    with pytest.raises(TypeError, match=told), kit:  # type: ignore[attr-defined]
        pass


def test_async_with_on_the_kit_for_threads() -> None:
    async def enter() -> None:
        async with clusterkit.sync.ClusterKit(address="127.0.0.1:1"):  # type: ignore[attr-defined]
            pass

    with pytest.raises(TypeError, match=r"write `with`, or take clusterkit\.ClusterKit"):
        asyncio.run(enter())


def test_a_start_that_was_not_awaited() -> None:
    async def ask() -> None:
        kit = clusterkit.ClusterKit(address="127.0.0.1:1")
        starting = kit.start()
        try:
            kit.partition_for("x")
        finally:
            starting.close()

    with pytest.raises(KitStateError, match=r"start\(\), which asyncio has to await"):
        asyncio.run(ask())
