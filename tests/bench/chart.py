"""The rows as a picture: for each two bars, the kit's and its peer's, on a scale of their own."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from .common import Row

_WIDTH, _BAR, _ROW, _LEFT = 900, 500, 58, 20
_OURS, _PEER, _MISSED = "#2b6cb0", "#a0aec0", "#c05621"


def svg(rows: Sequence[Row], caption: str) -> str:
    """An SVG document of its own."""
    height = _ROW * len(rows) + 50
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
            f'viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" font-size="12">'
        ),
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
        (
            f'<text x="{_LEFT}" y="22" font-size="14">{escape(caption)}: '
            f'<tspan fill="{_OURS}">the kit</tspan> and '
            f'<tspan fill="{_PEER}">its peer</tspan></text>'
        ),
    ]
    for number, row in enumerate(rows):
        top = 40 + number * _ROW
        verdict = {True: "met", False: "missed", None: ""}[row.met]
        target = "" if row.target is None else f" ({row.target}: {verdict})"
        colour = _MISSED if row.met is False else "black"
        parts.append(
            f'<text x="{_LEFT}" y="{top + 12}" fill="{colour}">{escape(row.work)}: '
            f"ratio {row.ratio:.2f}{escape(target)}</text>"
        )
        longest = max(row.ours, row.peer, 1e-12)
        for place, (value, fill) in enumerate(((row.ours, _OURS), (row.peer, _PEER))):
            width = max(1.0, max(0.0, value) / longest * _BAR)
            y = top + 18 + place * 15
            parts += [
                f'<rect x="{_LEFT}" y="{y}" width="{width:.1f}" height="12" fill="{fill}"/>',
                (
                    f'<text x="{_LEFT + width + 6:.1f}" y="{y + 10}">'
                    f"{value:.4g} {escape(row.unit)}</text>"
                ),
            ]
    return "\n".join([*parts, "</svg>", ""])
