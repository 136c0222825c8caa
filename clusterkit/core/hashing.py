"""Names and keys to integers, the same on every Python, processor and operating system.

What is computed here decides where a cluster's data lies, so none of it may ever change: the golden
vectors in ``tests/golden`` hold it. Another way of hashing needs a new name in the cluster config.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from hashlib import blake2b
from struct import Struct
from typing import Literal
from zlib import crc32

MASK64 = (1 << 64) - 1
KEY_HASHES = ("blake2b", "crc32")

_MOST_DIGITS = 18
# The multipliers of ``fmix64``.
MIX_1 = 0xFF51AFD7ED558CCD
MIX_2 = 0xC4CEB9FE1A85EC53
# The first 60 bits of pi, shifted down to odd: a multiplier that nobody has picked for its effects.
SPREAD = 0x3243F6A8885A309


def fmix64(x: int) -> int:
    """Mixes 64 bits: a bijection in which each bit of ``x`` sways every bit of the result.

    The finaliser of MurmurHash3, x64 variant, by Austin Appleby (public domain).
    """
    x = ((x ^ x >> 33) * MIX_1) & MASK64
    x = ((x ^ x >> 33) * MIX_2) & MASK64
    return x ^ x >> 33


def partition_id(index: int) -> str:
    """The name of the partition with that index."""
    return f"partition-{index}"


@lru_cache(maxsize=1 << 16)  # asked for each change of a partition, of which there are few
def partition_index(name: str) -> int | None:
    """The index in a partition's name; None for any text that is not exactly such a name."""
    head, dash, digits = name.partition("-")
    if head != "partition" or not dash or not (digits.isascii() and digits.isdecimal()):
        return None
    if len(digits) > _MOST_DIGITS:
        return None  # int() refuses what is far longer, and this may come from a stranger
    return int(digits) if digits == "0" or digits[0] != "0" else None


def seed64(name: str, cluster_seed: int, domain: Literal["partition", "node"]) -> int:
    """The 64-bit seed of a partition's or a node's name: BLAKE2b, keyed by the cluster's seed.

    ``domain`` keeps a node that is called like a partition apart from it.

    Raises:
        ValueError: ``cluster_seed`` is no unsigned 64-bit integer.
    """
    return seeds64((name,), cluster_seed, domain)[0]


def seeds64(
    names: Iterable[str], cluster_seed: int, domain: Literal["partition", "node"]
) -> list[int]:
    """``seed64`` of each name. Copying a keyed state takes half as long as keying anew."""
    start = blake2b(digest_size=8, key=_seed_bytes(cluster_seed), person=b"ck-" + domain.encode())
    copy, number, seeds = start.copy, int.from_bytes, []
    for name in names:
        state = copy()
        state.update(name.encode())
        seeds.append(number(state.digest(), "little"))
    return seeds


class SeedBlock:
    """Many seeds in one integer, so that one arithmetic operation mixes them all.

    Each seed has a lane of 128 bits: a product of two 64-bit numbers stays within it, and no carry
    reaches the next one. With a hundred lanes and more this takes a quarter of the time of a loop,
    because the interpreter's cost falls on each operation and not on each number.
    """

    __slots__ = ("_lanes", "_mask", "_ones", "_seeds", "_size")

    def __init__(self, seeds: Iterable[int]) -> None:
        # fmix64's first step is linear in XOR, so it can be taken before seeds meet: once, not for
        # each pair.
        stepped = [seed ^ seed >> 33 for seed in seeds]
        self._lanes, self._ones, self._mask = _lanes(len(stepped))
        self._size = self._lanes.size
        self._seeds = int.from_bytes(self._lanes.pack(*stepped), "little")

    def __len__(self) -> int:
        return self._size // 16

    def scores(self, seed: int) -> tuple[int, ...]:
        """``fmix64(s ^ seed)`` for each seed of the block, in their order."""
        return self._lanes.unpack(self._mixed(self.repeated(seed)))

    def repeated(self, seed: int) -> int:
        """The seed in each lane, for ``keys`` of all blocks of this length."""
        return (seed ^ seed >> 33) * self._ones

    def keys(self, repeated: int) -> tuple[float, ...]:
        """Numbers in the order of the scores, or equal where those differ in 8 bits only.

        They are the upper 56 bits of the scores, read as floating-point numbers: where the sign is
        0 those have the order of their bits, and the interpreter sorts them in half the time.
        """
        return _keys(len(self)).unpack(self._mixed(repeated))

    def pairs(self, seeds: Sequence[int]) -> tuple[int, ...]:
        """``fmix64(s ^ t)`` for each seed ``s`` of the block and its partner ``t`` in ``seeds``."""
        stepped = [seed ^ seed >> 33 for seed in seeds]
        others = int.from_bytes(self._lanes.pack(*stepped), "little")
        return self._lanes.unpack(self._mixed(others))

    def _mixed(self, others: int) -> bytes:
        mask = self._mask
        x = (self._seeds ^ others) * MIX_1 & mask
        x = (x ^ x >> 33 & mask) * MIX_2 & mask
        return (x ^ x >> 33 & mask).to_bytes(self._size, "little")


@lru_cache(maxsize=32)
def _lanes(count: int) -> tuple[Struct, int, int]:
    """The layout of that many lanes, and the integers with 1 and with ``MASK64`` in each lane."""
    lanes = Struct("<" + "Q8x" * count)
    ones = int.from_bytes(lanes.pack(*[1] * count), "little")
    return lanes, ones, ones * MASK64


@lru_cache(maxsize=32)
def _keys(count: int) -> Struct:
    """The layout of that many lanes as ``SeedBlock.keys`` reads them."""
    # All but the lowest of the 8 bytes, and the one after them, which is 0: a sign, and an
    # exponent that is neither infinite nor of no number.
    return Struct("<" + "xd7x" * count)


def key_indexer(key_hash: str, partitions: int, cluster_seed: int) -> Callable[[str | bytes], int]:
    """Makes the function from a key to the index of its partition, 0 to ``partitions`` - 1.

    A ``str`` is the same key as its UTF-8 bytes; lone surrogates, which have none, are encoded as
    ``surrogatepass`` does. The function raises TypeError for anything but ``str`` and ``bytes``.

    Args:
        key_hash: ``crc32``, the fast one, or ``blake2b`` for keys that an attacker may choose: it
            is keyed with the cluster's seed, so without that nobody can aim at one partition.
        partitions: How many partitions there are, at least 1. Up to 2**20 the partitions' shares
            differ by less than 0.03 %, which is what 32 bits allow.
        cluster_seed: The cluster's seed, an unsigned 64-bit integer. ``crc32`` does not use it.

    Raises:
        ValueError: No such hash, or a number out of its range.
    """
    if partitions < 1:
        raise ValueError(f"partitions is {partitions}; a cluster has at least 1")
    if key_hash == "crc32":
        return _crc32_indexer(partitions)
    if key_hash == "blake2b":
        return _blake2b_indexer(partitions, cluster_seed)
    raise ValueError(f"key_hash is {key_hash!r}; known are: {', '.join(KEY_HASHES)}")


def _crc32_indexer(partitions: int) -> Callable[[str | bytes], int]:
    # CRC-32 is linear: on numbered keys its bits repeat in a pattern, and taken modulo the
    # partitions as they are they leave some of those with many times their share. Bits 32 and up
    # of the product hang on every bit of the checksum. ``KitBase.partition_for`` has it written
    # out once more.
    def index(key: str | bytes) -> int:
        return (crc32(_key_bytes(key)) * SPREAD >> 32) % partitions

    return index


def _blake2b_indexer(partitions: int, cluster_seed: int) -> Callable[[str | bytes], int]:
    # Copying a keyed state is faster than keying anew.
    start = blake2b(digest_size=8, key=_seed_bytes(cluster_seed), person=b"ck-key").copy
    number = int.from_bytes

    def index(key: str | bytes) -> int:
        state = start()
        state.update(_key_bytes(key))
        return number(state.digest(), "little") % partitions

    return index


def _key_bytes(key: object) -> bytes:
    if isinstance(key, str):
        return key.encode("utf-8", "surrogatepass")
    if isinstance(key, bytes):
        return key
    raise TypeError(f"keys are str or bytes; got {type(key).__name__}; use str(key)")


@lru_cache(maxsize=8)
def _seed_bytes(cluster_seed: int) -> bytes:
    if not 0 <= cluster_seed <= MASK64:
        raise ValueError(f"cluster_seed is {cluster_seed}; it must be within 0 and 2**64 - 1")
    return cluster_seed.to_bytes(8, "little")
