"""What weighted nodes are ranked by, in integers: the logarithm of a score over the weight.

Nothing is decided by floating point, so two machines can never differ; ``tests/golden`` holds the
logarithm for ever.
"""

from __future__ import annotations

from functools import lru_cache
from math import log

LOG_BITS = 57
SLACK = 2.0**-40
"""Two estimates that differ by more than this are in the order of the exact costs.

An estimate is -ln(share) / weight, where share = (score + 1) / 2**64 is at least 2**-64 and weight
at least 1. Turning the score to floating point and adding one change the share by less than 2**-51
of it, so the logarithm by less than 2**-50. The logarithm is below 45, so with a library that errs
by up to 16 units in the last place (math.log and numpy.log promise 1 and 4) it is off by 2**-43 at
most. The rounding of weight and quotient adds less than 2**-46, and the exact cost has its
logarithm rounded down to 2**-57. So an estimate is less than 2**-42 away from the exact cost, in
units of its own, and the difference of two less than 2**-41 from that of theirs.
"""

_TABLE_BITS = 10
_WIDE = 96


def log2_fixed(x: int) -> int:
    """log2(x) for 1 <= ``x`` <= 2**64 in units of 2**-57, rounded down; it never decreases.

    With ``b`` as the leading 11 bits of ``x``, log2(x) is log2(b) from a table plus the fast series
    ln(x / b) = 2 artanh(s), s = (x - b) / (x + b) < 2**-11, up to its fifth power, in units of
    2**-96. Before the rounding the error is below 2**-77, while the logarithms of two neighbours
    differ by more than 2**-64: hence the order is exact, and the result is off by one unit at most
    (and that only where the true value is within 2**-77 of a unit).
    """
    table, scale = _log_table()
    exponent = x.bit_length() - 1
    x <<= 64 - exponent
    entry = x >> 64 - _TABLE_BITS
    base = entry << 64 - _TABLE_BITS
    s = (x - base << _WIDE) // (x + base)
    square = s * s >> _WIDE
    cube = s * square >> _WIDE
    artanh = s + cube // 3 + (cube * square >> _WIDE) // 5
    fraction = table[entry - (1 << _TABLE_BITS)] + (artanh * scale >> _WIDE)
    return (exponent << LOG_BITS) + (fraction >> _WIDE - LOG_BITS)


def cost(score: int, weight: int) -> int:
    """What weighted nodes are ranked by, the lowest first: -log2((score + 1) / 2**64) / weight.

    In units of 2**-97. Two different quotients are further apart than one unit, as weights are
    below 2**20, so rounding them down keeps their order exactly, and equal ones equal.
    """
    return ((64 << LOG_BITS) - log2_fixed(score + 1) << 40) // weight


def estimate(score: int, weight: float) -> float:
    """About ln 2 * ``cost`` * 2**-97, to decide what must be ranked at all; see ``SLACK``.

    ``weight`` is at least 1.
    """
    return -log((score + 1) * 2.0**-64) / weight


@lru_cache(maxsize=1)
def _log_table() -> tuple[tuple[int, ...], int]:
    """log2(1 + i / 1024) for i from 0 to 1024, and 2 / ln 2, in units of 2**-96.

    From artanh(1 / (2n + 1)) = ln((n + 1) / n) / 2, summed from n = 1024 up to 2047, which gives
    ln(2) / 2: no constant has to be trusted.
    """
    one = 1 << _WIDE + 32
    halves = [0]
    for n in range(1 << _TABLE_BITS, 2 << _TABLE_BITS):
        odd = 2 * n + 1
        artanh = sum(one // (power * odd**power) for power in (1, 3, 5, 7, 9))
        halves.append(halves[-1] + artanh)
    return tuple((h << _WIDE) // halves[-1] for h in halves), (one << _WIDE) // halves[-1]
