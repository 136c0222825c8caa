from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from random import Random
from struct import Struct
from typing import Any, cast

import pytest

from clusterkit.core.hashing import (
    KEY_HASHES,
    MASK64,
    MIX_1,
    MIX_2,
    SeedBlock,
    fmix64,
    key_indexer,
    partition_id,
    partition_index,
    seed64,
    seeds64,
)

GOLDEN = json.loads(
    (Path(__file__).parents[1] / "golden" / "placement.json").read_text(encoding="utf-8")
)

KEY_SETS: dict[str, Callable[[int], str | bytes]] = {
    "numbered users": lambda i: f"user:{i}",
    "padded": lambda i: f"user:{i:08d}",
    "integers": str,
    "hexadecimal": lambda i: f"{i:x}",
    "every 64th": lambda i: str(64 * i),
    "every 1000th": lambda i: f"order-{1000 * i}",
    "random UUIDs": lambda i: str(uuid.UUID(int=Random(i).getrandbits(128), version=4)),
    "sequential UUIDs": lambda i: str(uuid.UUID(int=(0x12345678 << 96) + (i * 7919 << 64))),
    "paths": lambda i: f"/data/{i % 97}/dir{i % 1013}/file_{i}.txt",
    "tenants": lambda i: f"tenant-{i % 200}/user-{i // 200}",
    "addresses": lambda i: f"10.{i >> 16}.{i >> 8 & 255}.{i & 255}",
    "e-mail": lambda i: f"user{i}@example.com",
    "little-endian": lambda i: i.to_bytes(4, "little"),
    "big-endian": lambda i: i.to_bytes(8, "big"),
}


def chi2_per_freedom(counts: Counter[int], bins: int) -> float:
    total = counts.total()
    return (sum(n * n for n in counts.values()) * bins / total - total) / (bins - 1)


def test_fmix64_golden() -> None:
    for x, expected in GOLDEN["fmix64"]:
        assert fmix64(int(x, 16)) == int(expected, 16), x


def test_fmix64_is_the_finaliser_of_murmurhash3() -> None:
    # Undone step by step with the inverses of the two published multipliers.
    first, second = pow(0xFF51AFD7ED558CCD, -1, 2**64), pow(0xC4CEB9FE1A85EC53, -1, 2**64)
    for x in (0, 1, 0xDEADBEEF, 2**63, MASK64):
        y = fmix64(x)
        y = (y ^ y >> 33) * second & MASK64
        y = (y ^ y >> 33) * first & MASK64
        assert y ^ y >> 33 == x


def test_seed64_golden() -> None:
    for name, seed, domain, expected in GOLDEN["seed64"]:
        assert seed64(name, int(seed, 16), domain) == int(expected, 16), (name, seed, domain)


def test_seed64_is_keyed_blake2b() -> None:
    key = (7).to_bytes(8, "little")
    expected = blake2b(b"pod-1", digest_size=8, key=key, person=b"ck-node").digest()
    assert seed64("pod-1", 7, "node") == int.from_bytes(expected, "little")


def test_many_seeds_are_those_of_each_name() -> None:
    names = ["pod-1", "", "pod-2", "p\u00e4rt"]
    for domain in ("partition", "node"):
        assert seeds64(iter(names), 7, domain) == [seed64(name, 7, domain) for name in names]


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_cluster_seed_out_of_range_is_named(seed: int) -> None:
    with pytest.raises(ValueError, match=f"cluster_seed is {seed}"):
        seed64("pod-1", seed, "node")
    with pytest.raises(ValueError, match=f"cluster_seed is {seed}"):
        key_indexer("blake2b", 4, seed)


@pytest.mark.parametrize("size", [1, 2, 255, 256])
def test_a_block_scores_as_fmix64_does(size: int) -> None:
    random = Random(size)
    extremes = [0, MASK64, 1, 1 << 63, (1 << 33) - 1, 1 << 33]
    seeds = [random.choice([*extremes, random.getrandbits(64)]) for _ in range(size)]
    block = SeedBlock(seeds)
    for other in (*extremes, *(random.getrandbits(64) for _ in range(20))):
        assert block.scores(other) == tuple(fmix64(seed ^ other) for seed in seeds)
    others = [random.getrandbits(64) for _ in seeds]
    pairs = zip(seeds, others, strict=True)
    assert block.pairs(others) == tuple(fmix64(seed ^ other) for seed, other in pairs)
    assert len(block) == len(seeds)


@pytest.mark.parametrize("size", [1, 2, 255, 256])
def test_keys_have_the_order_of_scores(size: int) -> None:
    random = Random(size)
    seeds = [0, *(random.getrandbits(64) for _ in range(size - 1))]
    block = SeedBlock(seeds)
    others = [random.getrandbits(64) for _ in range(20)]
    # Scores of all ones and zeros at either end, where a floating-point number would be none.
    extremes = [0, 1, 255, 256, MASK64, MASK64 - 255, MASK64 - 256, 1 << 63, 0x7FF << 52]
    others += [inverse(score) for score in extremes]
    scores = [score for other in others for score in block.scores(other)]
    keys = [key for other in others for key in block.keys(block.repeated(other))]
    assert [score >> 8 for score in scores] == [key_bits(key) for key in keys]
    ranked = sorted(zip(keys, scores, strict=True))
    assert [score >> 8 for _, score in ranked] == sorted(score >> 8 for score in scores)


def key_bits(key: float) -> int:
    return int.from_bytes(Struct("<d").pack(key), "little")


def inverse(score: int) -> int:
    """What ``fmix64`` makes that score of."""
    for multiplier in (MIX_2, MIX_1):
        score = (score ^ score >> 33) * pow(multiplier, -1, 1 << 64) & MASK64
    return score ^ score >> 33


def test_key_indexer_golden() -> None:
    for key_hash, partitions, seed, key, expected in GOLDEN["key_indexer"]:
        index = key_indexer(key_hash, partitions, int(seed, 16))
        assert index(key) == expected, (key_hash, partitions, seed, key)
        assert index(key.encode("utf-8", "surrogatepass")) == expected


@pytest.mark.parametrize("key_hash", KEY_HASHES)
def test_what_counts_as_the_same_key(key_hash: str) -> None:
    class Text(str):
        __slots__ = ()

    class Octets(bytes):
        __slots__ = ()

    index = key_indexer(key_hash, 1 << 20, 5)
    assert index("schlüssel") == index("schlüssel".encode()) == index(Text("schlüssel"))
    assert index(b"\xff") == index(Octets(b"\xff"))
    assert index("1") != index("2")


@pytest.mark.parametrize("key", [7, None, 1.5, bytearray(b"x"), ("a",)])
@pytest.mark.parametrize("key_hash", KEY_HASHES)
def test_other_keys_are_refused_with_the_remedy(key_hash: str, key: object) -> None:
    index = cast(Callable[[Any], int], key_indexer(key_hash, 4, 0))
    name = type(key).__name__
    with pytest.raises(TypeError, match=rf"keys are str or bytes; got {name}; use str\(key\)"):
        index(key)


def test_only_blake2b_hangs_on_the_seed() -> None:
    def indexes(key_hash: str, seed: int) -> list[int]:
        return list(map(key_indexer(key_hash, 1000, seed), map(str, range(20))))

    assert indexes("crc32", 1) == indexes("crc32", 2)
    assert indexes("blake2b", 1) != indexes("blake2b", 2)


@pytest.mark.parametrize(
    "name, index",
    [
        ("partition-0", 0),
        ("partition-7", 7),
        ("partition-1048575", 1_048_575),
        ("partition-00", None),
        ("partition-07", None),
        ("partition-", None),
        ("partition", None),
        ("partition-7a", None),
        ("partition--7", None),
        ("partition-²", None),  # a digit, and no decimal
        ("partition-\u0667", None),  # a decimal, and not ours
        ("Partition-7", None),
        ("a-7", None),
        ("", None),
    ],
)
def test_only_the_exact_name_of_a_partition_has_an_index(name: str, index: int | None) -> None:
    assert partition_index(name) == index
    if index is not None:
        assert partition_id(index) == name


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="key_hash is 'md5'; known are: blake2b, crc32"):
        key_indexer("md5", 4, 0)
    with pytest.raises(ValueError, match="partitions is 0"):
        key_indexer("crc32", 0, 0)


@pytest.mark.parametrize("partitions", [64, 1000, 65536])
@pytest.mark.parametrize("keys", KEY_SETS)
def test_structured_keys_spread_evenly(keys: str, partitions: int) -> None:
    # Five standard deviations of chi-squared; taken modulo the partitions as it is, CRC-32 is
    # beyond a hundred in several of these sets. More even than chance is no fault.
    count = 100_000
    index = key_indexer("crc32", partitions, 0)
    counts = Counter(map(index, map(KEY_SETS[keys], range(count))))
    assert chi2_per_freedom(counts, partitions) < 1 + 5 * (2 / (partitions - 1)) ** 0.5


@pytest.mark.parametrize("key_hash", KEY_HASHES)
def test_all_partitions_are_reached_and_no_other(key_hash: str) -> None:
    for partitions in (1, 2, 3, 17):
        index = key_indexer(key_hash, partitions, 0)
        assert {index(str(i)) for i in range(500)} == set(range(partitions))


def run_generator(*arguments: str, name: str = "placement") -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parents[2]
    return subprocess.run(
        [sys.executable, "-m", f"tests.golden.make_{name}", *arguments],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


@pytest.mark.parametrize("name", ["balance", "placement"])
def test_golden_file_is_what_its_script_writes(tmp_path: Path, name: str) -> None:
    target = tmp_path / f"{name}.json"
    done = run_generator(str(target), name=name)
    assert done.returncode == 0, done.stderr
    committed = Path(__file__).parents[1] / "golden" / f"{name}.json"
    assert target.read_text(encoding="utf-8") == committed.read_text(encoding="utf-8")


def test_golden_script_overwrites_nothing_unless_forced(tmp_path: Path) -> None:
    target = tmp_path / "placement.json"
    target.write_text("released")
    refused = run_generator(str(target))
    assert refused.returncode == 1
    assert "--force" in refused.stderr
    assert target.read_text() == "released"
    assert run_generator(str(target), "--force").returncode == 0
    assert json.loads(target.read_text(encoding="utf-8")) == GOLDEN
