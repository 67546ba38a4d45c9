"""The documentation: every method and recipe has its place, links lead somewhere, and it is built without a network."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from collimate import inventory
from tools.pages import methods
from tools.pages.docstrings import as_markdown
from tools.pages.hooks import written_pages

from .pages import ROOT

_CODE = re.compile(r"^ *```.*?^ *```|`[^`\n]+`", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)#\s]*)(?:#[^)\s]*)?\)")


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    """Page -> Markdown, of all pages."""
    docs = ROOT / "docs"
    return written_pages() | {path.relative_to(docs).as_posix(): path.read_text() for path in docs.rglob("*.md")}


def test_every_method_has_a_page(pages: dict[str, str]):
    listed = {name for name, _ in inventory.methods() if not name.startswith(methods.NOT_METHODS)}
    shown = {page.name: pages[page.uri] for page in methods.pages()}
    assert shown.keys() == listed
    assert "Radford et al. 2021" in shown["collimate_vision_language.CLIP"]
    assert "`clip_loss`" in shown["collimate_vision_language.CLIP"], "its golden set"
    assert "clip_demo" in shown["collimate_vision_language.CLIP"], "its recipes"


def test_every_recipe_is_shown(pages: dict[str, str]):
    for app, path in methods.recipes():
        assert f"## {path.stem}\n" in pages[f"recipes/{app}.md"]


def test_links_lead_to_pages(pages: dict[str, str]):
    pictures = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.*")}
    broken = []
    for uri, text in pages.items():
        for target in _LINK.findall(_CODE.sub("code", text)):
            place = os.path.normpath(os.path.join(os.path.dirname(uri), target)) if target else uri
            if "://" not in target and place not in pages and place not in pictures:
                broken.append(f"{uri}: {target}")
    assert not broken


def test_docstrings_show_what_their_source_shows():
    shown = as_markdown("With <x_i, y_j> and *k* of `<code>`:\n- one\n- two\n\n    s = <x, y> * 2\n")
    assert shown == "With &lt;x_i, y_j> and \\*k\\* of `<code>`:\n\n- one\n- two\n\n    s = <x, y> * 2"


class _Loaded(HTMLParser):
    """What a browser loads by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        source = given.get("src") if tag in ("script", "img", "iframe", "source") else None
        if tag == "link" and given.get("rel") not in ("canonical", "next", "prev"):
            source = given.get("href")
        if source:
            self.found.append(source)


@pytest.mark.slow  # twenty seconds of a quiet core: every docstring of the reference is rendered
@pytest.mark.timeout(1800)
def test_it_is_built_strictly_and_loads_nothing_from_elsewhere(tmp_path: Path):
    pytest.importorskip("mkdocs", reason="the group `docs` is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_COLOR": "1"})
    assert done.returncode == 0, done.stderr[-4000:]
    built = list(tmp_path.rglob("*.html"))
    assert len(built) > 80
    for page in built:
        parser = _Loaded()
        parser.feed(page.read_text(encoding="utf-8"))
        assert not [source for source in parser.found if "//" in source], page
