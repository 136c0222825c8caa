"""The Python in the documents is Python that works, and ``docs/hooks.md`` leaves nothing out."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
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
    # A module of the reader's, which has a kit.
    (tmp_path / "myservice").mkdir()
    (tmp_path / "myservice" / "__init__.py").touch()
    module = "from clusterkit.sync import ClusterKit\n\nck = ClusterKit()\n"
    (tmp_path / "myservice" / "cluster.py").write_text(module)
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


def test_the_tests_that_documents_name_exist() -> None:
    named: set[tuple[str, str]] = set()
    for document in documents():
        named |= set(re.findall(r"`(tests/\S+\.py)::(\w+)`", document.read_text()))
    assert len(named) > 40
    for path, name in sorted(named):
        text = (ROOT / path).read_text()
        assert re.search(rf"^def {name}\(", text, re.MULTILINE), (path, name)


def test_each_guarantee_names_a_test() -> None:
    text = (ROOT / "docs" / "guarantees.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("|")]
    rows = [row for row in rows if not set(row) <= set("|-") and "held by" not in row]
    rows = [row for row in rows if "shown by" not in row]
    assert len(rows) > 25
    assert [row for row in rows if "::test_" not in row] == []


def test_every_page_is_in_the_navigation_of_the_site() -> None:
    listed = re.findall(r"^ +- (?:\w+: )?(\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M)
    pages = {str(page.relative_to(ROOT / "docs")) for page in ROOT.glob("docs/**/*.md")}
    assert sorted(listed) == sorted(pages)


@pytest.mark.timeout(300)
def test_the_blocks_of_the_page_on_testing_are_tests_that_pass(tmp_path: Path) -> None:
    *tests, program = blocks(ROOT / "docs" / "testing.md")
    for number, block in enumerate(tests):
        (tmp_path / f"test_{number}.py").write_text(block)
    (tmp_path / "program.py").write_text(program)
    (tmp_path / "pytest.ini").touch()
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    for command, said in (
        (["-m", "pytest", "-q", "-p", "no:cacheprovider"], "3 passed"),
        (["program.py"], "['one', 'two']"),
    ):
        done = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, env=environ, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert said in done.stdout
