"""The site builds without a warning, needs no network, and its links and anchors lead somewhere."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest


pytest.importorskip("mkdocs", reason="needs uld_hf[docs]")
pytest.importorskip("material", reason="needs uld_hf[docs]")
pytest.importorskip("mkdocstrings_handlers.python", reason="needs uld_hf[docs]")

ROOT = Path(__file__).parents[1]


class Page(HTMLParser):
    """The anchors of a page, where its links lead, and what it loads."""

    def __init__(self, html: str):
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if tag in ("script", "img", "iframe") and "src" in values:
            self.loaded.append(values["src"])
        if tag == "link" and values.get("rel") != "canonical" and "href" in values:
            self.loaded.append(values["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    # mkdocs-material tells at every build that mkdocs 2 will not run it.
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "WARNING" not in done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    """The pages by file, but the one for wrong addresses, whose links are relative to the server."""
    files = (file for file in site.rglob("*.html") if file.name != "404.html")
    return {file: Page(file.read_text(encoding="utf-8")) for file in files}


def inner_links(pages: dict[Path, Page]) -> Iterator[tuple[Path, str, Path, str]]:
    """Page, link, and file and anchor that it leads to, for links that do not leave the site."""
    for file, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if not parts.scheme:
                yield file, link, (file.parent / unquote(parts.path)).resolve() if parts.path else file, parts.fragment


def test_links_lead_to_files_of_the_site(pages: dict[Path, Page]):
    broken = [(file.name, link) for file, link, to, _ in inner_links(pages) if not to.is_file() and to.name]
    assert not [(name, link) for name, link in broken if link not in (".", "..", "./")]
    assert sum(1 for _ in inner_links(pages)) > 200


def test_anchors_are_there(pages: dict[Path, Page]):
    anchored = [(file, link, to, anchor) for file, link, to, anchor in inner_links(pages) if anchor and to in pages]
    assert not [(file.name, link) for file, link, to, anchor in anchored if unquote(anchor) not in pages[to].anchors]
    assert len(anchored) > 100


def test_nothing_is_loaded_from_elsewhere(site: Path, pages: dict[Path, Page]):
    for file, page in pages.items():
        assert not [source for source in page.loaded if urlsplit(source).scheme or source.startswith("//")], file
    for style in site.rglob("*.css"):
        assert not re.findall(r"url\([\"']?https?:|@import", style.read_text(encoding="utf-8")), style


def test_docstrings_lost_their_markup(pages: dict[Path, Page]):
    """What trl's grammar has and the site does not: a sign that docs/trl_docstrings.py does not know a form of it."""
    for file in (file for file in pages if file.parent.name == "api"):
        text = re.sub(r"<pre.*?</pre>|<[^>]+>", "", file.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert not re.findall(r"\*optional\*|\[!NOTE\]|\[`|defaults to <|`[~\w.]+`", text), file.name
        assert "Parameters:" in text


def test_every_public_name_is_in_the_reference(pages: dict[Path, Page]):
    import uld_hf

    anchors = set().union(*(page.anchors for page in pages.values()))
    short = {anchor.rpartition(".")[2] for anchor in anchors}
    assert not set(uld_hf.__all__) - short


def test_every_page_is_in_the_navigation():
    listed = set(re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), flags=re.MULTILINE))
    docs = ROOT / "docs"
    assert {str(page.relative_to(docs)) for page in docs.rglob("*.md")} == listed
