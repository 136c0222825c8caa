"""What all rows share: the form of a row, and rounds that are fair to both sides."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Row:
    """One line of the table, and one object of ``results.json``.

    Attributes:
        work: What was done.
        ours: The kit's figure, in ``unit``.
        peer: The figure beside it, in ``unit``.
        unit: Of both.
        ratio: What ``target`` is about: mostly ours / peer; where it says how many times as fast
            ours is, peer / ours.
        target: What was asked for, in words; None for a row that only informs.
        met: Whether it is met; None without a target.
    """

    work: str
    ours: float
    peer: float
    unit: str
    ratio: float
    target: str | None = None
    met: bool | None = None


def at_least(work: str, ours: float, peer: float, unit: str, target: float | None) -> Row:
    """A row whose ratio should be large, such as one of rates."""
    ratio = ours / peer
    if target is None:
        return Row(work, ours, peer, unit, ratio)
    return Row(work, ours, peer, unit, ratio, f"ratio at least {target:g}", ratio >= target)


def at_most(work: str, ours: float, peer: float, unit: str, target: float | None) -> Row:
    """A row whose ratio should be small, such as one of latencies."""
    ratio = ours / peer
    if target is None:
        return Row(work, ours, peer, unit, ratio)
    return Row(work, ours, peer, unit, ratio, f"ratio at most {target:g}", ratio <= target)


def faster(work: str, ours: float, peer: float, unit: str, target: float | None) -> Row:
    """A row of times, whose ratio is how many times as fast as the peer it is."""
    ratio = peer / ours
    if target is None:
        return Row(work, ours, peer, unit, ratio)
    return Row(work, ours, peer, unit, ratio, f"{target:g} times as fast", ratio >= target)


def tidy() -> None:
    """Collects garbage, and takes what is alive out of later collections.

    Both sides do this just before their clock starts, so neither pays for what the other has left.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()


@contextmanager
def untidied() -> Iterator[None]:
    """Gives back to the collector what ``tidy`` took from it."""
    try:
        yield
    finally:
        gc.unfreeze()


def duel(ours: Callable[[], float], peer: Callable[[], float], rounds: int) -> tuple[float, float]:
    """The median seconds of both, which take turns; who is first changes each round.

    One round of each before the first is not counted: it loads code, and fills caches.
    """
    found: tuple[list[float], list[float]] = [], []
    sides = (ours, peer)
    with untidied():
        for number in range(rounds + 1):
            for side in (0, 1) if number % 2 else (1, 0):
                seconds = sides[side]()
                if number:
                    found[side].append(seconds)
    return median(found[0]), median(found[1])
