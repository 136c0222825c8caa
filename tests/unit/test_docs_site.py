"""Links of the documents that lead out of ``docs/``: what becomes of them on the site."""

from __future__ import annotations

import pytest

from tools.docs_site import links, reachable, with_links

pytestmark = pytest.mark.repository


@pytest.mark.parametrize(
    "page, text, on_site",
    [
        ("index.md", "[a](hooks.md#order)", "[a](hooks.md#order)"),
        ("index.md", "[a](../ARCHITECTURE.md)", "[a](repository/ARCHITECTURE.md)"),
        ("index.md", "![a](pictures/overview.svg)", "![a](pictures/overview.svg)"),
        ("index.md", "[a](../examples/hooks)", "[a](repository/examples/hooks/README.md)"),
        ("repository/deploy/README.md", "[a](docker/Dockerfile)", "[a](docker/Dockerfile)"),
        ("repository/deploy/README.md", "[a](../docs/hooks.md#x)", "[a](../../hooks.md#x)"),
        ("index.md", "[a](https://example.org/x)", "[a](https://example.org/x)"),
        ("index.md", "[a](../nothing.md)", "[a](../nothing.md)"),  # so that the build refuses it
    ],
)  # fmt: skip
def test_a_link(page: str, text: str, on_site: str) -> None:
    assert with_links(page, text) == on_site


def test_what_linked_documents_link_to_comes_too() -> None:
    texts = {"examples/hooks/README.md": "[a](errors.py) [b](../../docs/hooks.md)"}
    found = reachable({"index.md": "[a](../examples/hooks/README.md)"}, texts.__getitem__)
    assert found == {"examples/hooks/README.md", "examples/hooks/errors.py"}
    assert links("index.md", "[a](../../outside.md)") == set()
