"""The Python in the documents is Python that works, and ``docs/hooks.md`` leaves nothing out."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import get_args

import pytest

from clusterkit import HookContext, events
from clusterkit.hooks import HookKind, HookOptions

from .test_programs import mypy

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs" / "hooks.md"
EVENTS = {"rebalance_start": events.RebalanceEvent, "rebalance_complete": events.RebalanceEvent}


def documents() -> list[Path]:
    found = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")]
    assert REFERENCE in found
    return sorted(found)


def blocks(document: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", document.read_text(), re.MULTILINE | re.DOTALL)


def sections() -> dict[str, str]:
    """What stands under each heading of the reference."""
    _, *parts = re.split(r"^##+ (.*)\n", REFERENCE.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


@pytest.mark.timeout(300)
def test_each_block_type_checks_by_itself(tmp_path: Path) -> None:
    """As a user's file would; ``mypy --strict`` finds names and arguments that are not there."""
    programs: list[Path] = []
    for document in documents():
        for number, block in enumerate(blocks(document)):
            program = tmp_path / f"{document.parent.name}_{document.stem}_{number}.py"
            program.write_text(block)
            programs.append(program)
    assert {p.name for p in programs} >= {"docs_hooks_0.py", f"{ROOT.name}_README_0.py"}
    done = mypy(tmp_path, *programs)
    assert (done.stdout + done.stderr, done.returncode) == ("", 0)


def test_the_blocks_of_the_reference_run() -> None:
    for block in blocks(REFERENCE):
        exec(compile(block, str(REFERENCE), "exec"), {"__name__": "block"})


@pytest.mark.parametrize("kind", get_args(HookKind))
def test_the_reference_has_every_hook_with_every_field(kind: HookKind) -> None:
    name = "".join(part.title() for part in kind.split("_")) + "Event"
    event = EVENTS.get(kind) or getattr(
        events, name.replace("ClusterHealthChange", "ClusterHealth")
    )
    own = {f.name for f in dataclasses.fields(event)} - {
        f.name for f in dataclasses.fields(events.Event)
    }
    text = sections()[f"on_{kind}"]
    if kind == "rebalance_complete":
        text += sections()["on_rebalance_start"]
    assert event.__name__ in text
    assert {field for field in own if f"`{field}`" not in text} == set()
    assert f"| [`on_{kind}`](#on_{kind}) |" in sections()["All hooks"]


def test_the_reference_has_every_option_and_all_of_the_context() -> None:
    found = sections()
    options = {*HookOptions.__annotations__, "mine", "partitions", "reasons"}
    assert {name for name in options if f"| `{name}=" not in found["Options"]} == set()
    context = {name for name in dir(HookContext) if not name.startswith("_")}
    assert {name for name in context if f"| `{name}" not in found["hook_context()"]} == set()
    common = {f.name for f in dataclasses.fields(events.Event)}
    assert {name for name in common if f"| `{name}` |" not in found["All hooks"]} == set()


def test_links_lead_somewhere() -> None:
    for document in documents():
        text = document.read_text()
        anchors = {
            re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
            for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
        }
        for link in re.findall(r"\]\(([^)]+)\)", text):
            path, _, anchor = link.partition("#")
            if "://" in link:
                continue
            assert (document.parent / path).exists(), (document, link)
            if anchor and not path:
                assert anchor in anchors, (document, link)
