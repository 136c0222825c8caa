"""Versions of rows share a list, and none of them ever changes."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from random import Random

import pytest

from clusterkit.core import rows as rows_module
from clusterkit.core.placement import Row
from clusterkit.core.rows import Rows, differences

FIRST = (("a",), ("b",), ("c",), ("d",))


def test_an_old_version_stays_as_it_was_however_it_is_read() -> None:
    old = Rows(FIRST)
    newer = old.replaced({1: ("x",), 3: ("y",)})
    newest = newer.replaced({1: ("z",)})
    assert tuple(old) == FIRST
    assert tuple(newer) == (("a",), ("x",), ("c",), ("y",))
    assert tuple(newest) == (("a",), ("z",), ("c",), ("y",))
    assert [old[i] for i in range(4)] == list(FIRST)
    assert [newer[i - 4] for i in range(4)] == [("a",), ("x",), ("c",), ("y",)]
    assert old[1:] == FIRST[1:]
    assert newer[::-1] == (("y",), ("c",), ("x",), ("a",))
    assert len(old) == len(newest) == 4
    with pytest.raises(IndexError):
        old[4]
    with pytest.raises(IndexError):
        old[-5]


def test_versions_are_equal_to_their_rows() -> None:
    old = Rows(FIRST)
    newer = old.replaced({0: ("x",)})
    assert old == FIRST
    assert old == Rows(FIRST)
    assert hash(old) == hash(FIRST)
    assert newer != FIRST
    assert newer.replaced({0: ("a",)}) == old
    assert old.replaced({}) is old
    assert (old == list(FIRST)) is False
    assert repr(old) == "<4 rows>"


def test_two_versions_differ_as_they_did_when_there_are_newer_ones() -> None:
    old = Rows(FIRST)
    newer = old.replaced({1: ("x",), 3: ("y",)})
    newer.replaced({1: ("z",), 2: ("v",)})
    expected = [(1, ("b",), ("x",)), (3, ("d",), ("y",))]
    assert list(differences(old, newer)) == expected


def test_a_version_that_is_not_the_newest_can_have_another_next() -> None:
    old = Rows(FIRST)
    one, other = old.replaced({0: ("x",)}), old.replaced({1: ("y",)})
    assert tuple(one) == (("x",), *FIRST[1:])
    assert tuple(other) == (("a",), ("y",), *FIRST[2:])
    assert tuple(old) == FIRST


def test_an_old_version_does_not_hold_on_to_all_that_came_after(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rows_module, "_GENERATIONS", 3)
    versions = [Rows(FIRST)]
    for number in range(10):
        versions.append(versions[-1].replaced({number % 4: (str(number),)}))
    assert versions[0].replaced_until(versions[3]) is not None
    assert versions[0].replaced_until(versions[4]) is None
    assert tuple(versions[0]) == FIRST
    assert list(differences(versions[0], versions[10])) == [
        (i, FIRST[i], versions[10][i]) for i in range(4)
    ]


def test_differences_are_found_from_the_versions_or_by_comparing_all() -> None:
    random = Random(6)
    for _ in range(200):
        plain: list[Row] = [(str(random.randint(0, 2)),) for _ in range(6)]
        versions, copies = [Rows(plain)], [tuple(plain)]
        for _ in range(random.randint(0, 5)):
            changes = {random.randrange(6): (str(random.randint(0, 2)),) for _ in range(2)}
            versions.append(versions[-1].replaced(changes))
            copies.append(tuple(changes.get(i, row) for i, row in enumerate(copies[-1])))
        first = random.randrange(len(versions))
        expected = [
            (i, before, row)
            for i, (before, row) in enumerate(zip(copies[first], copies[-1], strict=True))
            if before != row
        ]
        assert list(differences(versions[first], versions[-1])) == expected
        assert list(differences(versions[first], copies[-1])) == expected
        assert list(differences(copies[first], versions[-1])) == expected


def test_a_version_may_be_read_on_any_thread_while_the_next_are_made() -> None:
    old = Rows(("old",) for _ in range(50))
    begun = threading.Event()

    def read() -> bool:
        for number in range(2000):
            begun.set()
            if old[number % 50] != ("old",) or (number % 50 == 0 and set(old) != {("old",)}):
                return False
        return True

    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        begun.wait()
        newest = old
        for number in range(2000):
            newest = newest.replaced({number % 50: (str(number),)})
        assert all(reader.result() for reader in readers)
    assert newest[49] == ("1999",)


def test_behind_an_end_rows_are_empty() -> None:
    assert list(differences((), FIRST[:2])) == [(0, (), ("a",)), (1, (), ("b",))]
    assert list(differences(Rows(FIRST[:2]), FIRST[:1])) == [(1, ("b",), ())]
