"""The rows of one assignment after the other, which share what they have in common.

A join among a thousand nodes changes three rows in a thousand. To copy all the others each time
would take longer than to find these, so the newest version has the list, and each older one has
what has been replaced in it since (H. G. Baker, "Shallow binding makes functional arrays fast",
SIGPLAN Notices 26(8), 1991).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from operator import itemgetter
from typing import overload

from .placement import Row

_GENERATIONS = 256  # versions that share a list: what an old one holds on to, and has to look at


class Rows(Sequence[Row]):
    """The rows of an assignment; they never change.

    Any thread may read any version while one thread, the owner's, makes the next.
    """

    __slots__ = ("_age", "_later", "_list")

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        self._list = list(rows)
        self._age = 0
        # What has been replaced in the list by the next version, and that version.
        self._later: tuple[Mapping[int, Row], Rows] | None = None

    def replaced(self, rows: Mapping[int, Row]) -> Rows:
        """The next version, with these rows in place of those of the same indexes."""
        if not rows:
            return self
        if self._later is not None or self._age == _GENERATIONS:
            return Rows(self).replaced(rows)
        shared = self._list
        newer = Rows.__new__(Rows)
        newer._list, newer._age, newer._later = shared, self._age + 1, None
        # In this order: whoever reads the list first, and then looks for what was replaced in it,
        # finds either the old row or that it was replaced.
        # All at once: rows lie anywhere in memory, and a loop in C waits for many at a time.
        before = itemgetter(*rows)(shared) if len(rows) > 1 else [shared[n] for n in rows]
        self._later = dict(zip(rows, before, strict=True)), newer
        for index, row in rows.items():
            shared[index] = row
        return newer

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Row, ...]: ...
    def __getitem__(self, index: int | slice) -> Row | tuple[Row, ...]:
        if isinstance(index, slice):
            return tuple(self._whole()[index])
        row = self._list[index]
        later = self._later
        if later is not None and index < 0:
            index += len(self._list)
        while later is not None:
            replaced, newer = later
            if index in replaced:
                return replaced[index]
            later = newer._later
        return row

    def picked(self, indexes: Sequence[int]) -> list[Row]:
        """The rows of these indexes, of which none is negative."""
        found = [self._list[index] for index in indexes]
        # As in a look at one: the list first, and then what was replaced in it.
        return found if self._later is None else [self[index] for index in indexes]

    def replaced_until(self, newer: Sequence[Row]) -> dict[int, Row] | None:
        """The rows of this version that ``newer`` has others for, or had for a time.

        None if that is not known, since the two do not share a list.
        """
        found: dict[int, Row] = {}
        version = self
        while version is not newer:
            if version._later is None:
                return None
            replaced, version = version._later
            found = {**replaced, **found}
        return found

    def _whole(self) -> list[Row]:
        rows = self._list.copy()  # in one step, and before looking for what was replaced
        replaced: list[Mapping[int, Row]] = []
        later = self._later
        while later is not None:
            replaced.append(later[0])
            later = later[1]._later
        for changes in reversed(replaced):
            for index, row in changes.items():
                rows[index] = row
        return rows

    def __iter__(self) -> Iterator[Row]:
        return iter(self._whole())

    def __len__(self) -> int:
        return len(self._list)

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if isinstance(other, Rows):
            return self._whole() == other._whole()
        if isinstance(other, tuple):
            return tuple(self._whole()) == other
        return NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self._whole()))

    def __repr__(self) -> str:
        return f"<{len(self)} rows>"


def differences(old: Sequence[Row], new: Sequence[Row]) -> Iterator[tuple[int, Row, Row]]:
    """The rows that differ: index, old row, new row, in their order. Behind an end rows are empty.

    Of two versions of the same rows only those are looked at that were replaced in between.
    """
    known = old.replaced_until(new) if isinstance(old, Rows) else None
    if known is None:
        for index, (before, row) in enumerate(zip_longest(old, new, fillvalue=())):
            if before != row:
                yield index, before, row
        return
    if known:
        assert isinstance(new, Rows)
        indexes = sorted(known)
        for index, row in zip(indexes, new.picked(indexes), strict=True):
            before = known[index]
            if before != row:
                yield index, before, row
