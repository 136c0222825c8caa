"""What the documentation site needs beyond MkDocs: the files outside ``docs/`` that it links to.

In the repository a link such as ``../examples/hooks/README.md`` leads to the file, and it shall do
so on the site too. So every file that a page links to, and that those link to in turn, becomes a
part of the site under ``repository/``: documents as pages, programs and manifests as they are. A
link that leads nowhere is left alone, and then ``mkdocs build --strict`` refuses it.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.structure.files import Files

ROOT = Path(__file__).resolve().parent.parent
BESIDE = "repository/"
_LINK = re.compile(r"(\]\()([^)#\s]+)(#[^)\s]*)?(\))")


def repository_path(uri: str) -> str:
    """Where a page of the site lies in the repository."""
    return uri.removeprefix(BESIDE) if uri.startswith(BESIDE) else f"docs/{uri}"


def target_of(page: str, link: str) -> str | None:
    """The file of the repository that a link in a page leads to; None if it leads elsewhere."""
    if "://" in link or link.startswith(("/", "mailto:")):
        return None
    path = posixpath.normpath(posixpath.join(posixpath.dirname(repository_path(page)), link))
    if (ROOT / path).is_dir():
        path = f"{path}/README.md"
    return path if not path.startswith("..") and (ROOT / path).is_file() else None


def site_uri(path: str) -> str:
    """What a file of the repository is called on the site."""
    return path.removeprefix("docs/") if path.startswith("docs/") else BESIDE + path


def links(page: str, text: str) -> set[str]:
    """The files of the repository that a page links to."""
    found = (target_of(page, match[2]) for match in _LINK.finditer(text))
    return {path for path in found if path is not None}


def with_links(page: str, text: str) -> str:
    """The text of a page with its links as they have to be on the site."""

    def on_site(match: re.Match[str]) -> str:
        path = target_of(page, match[2])
        if path is None:
            return match[0]
        uri = posixpath.relpath(site_uri(path), posixpath.dirname(page) or ".")
        return f"{match[1]}{uri}{match[3] or ''}{match[4]}"

    return _LINK.sub(on_site, text)


def reachable(pages: dict[str, str], read: Callable[[str], str]) -> set[str]:
    """The files outside ``docs/`` that can be reached from pages, given by name and text."""
    found: set[str] = set()
    todo = list(pages.items())
    while todo:
        page, text = todo.pop()
        for path in links(page, text):
            if not path.startswith("docs/") and path not in found:
                found.add(path)
                if path.endswith(".md"):
                    todo.append((site_uri(path), read(path)))
    return found


# What MkDocs calls.


def on_files(files: Files, config: Any) -> Files:
    """Adds what the pages link to."""
    from mkdocs.structure.files import File  # not installed where tests look at the rest

    pages = {file.src_uri: file.content_string for file in files.documentation_pages()}
    for path in sorted(reachable(pages, lambda path: (ROOT / path).read_text())):
        files.append(File.generated(config, site_uri(path), abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Has the links of a page lead to where their files are on the site."""
    return with_links(page.file.src_uri, markdown)
