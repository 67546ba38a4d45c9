"""READMEs and recipes as pages: the texts stand beside the code, and are shown here with their links turned."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from tools.pages.methods import recipes
from tools.pages.sources import APPS, PACKAGES, ROOT

TITLES = dict(zip(APPS, ("Images and text", "Audio", "Video", "Medical", "3D"), strict=True))

_FENCE = re.compile(r"(^ *```.*?^ *```)", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def included() -> dict[str, Path]:
    """Page -> the file whose text it shows."""
    found = {f"guides/{app}.md": ROOT / "apps" / folder / "README.md" for app, folder in APPS.items()}
    found |= {
        f"reference/{name}/index.md": ROOT / "packages" / folder / "README.md" for name, folder in PACKAGES.items()
    }
    return found | {"contributing.md": ROOT / "CONTRIBUTING.md", "changelog.md": ROOT / "CHANGELOG.md"}


def page_of(uri: str, path: Path) -> str:
    """The text of a file as a page, with links to other files turned into links to their pages, or into code."""
    return turned(path.read_text(encoding="utf-8"), path, uri)


def turned(text: str, path: Path, uri: str) -> str:
    """The links of a text that stands at `path`, so that they hold on the page `uri`.

    A link to a file that has no page becomes the name of the file.
    """
    targets = _targets()

    def link(found: re.Match[str]) -> str:
        label, target, anchor = found[1], found[2], found[3] or ""
        if "://" in target:
            return found[0]
        place = (path.parent / target).resolve()
        page = targets.get(place) or targets.get(place / "README.md")
        if page is None:
            return f"{label} (`{place.relative_to(ROOT)}`)" if label.strip("`") not in place.name else label
        name, _, own = page.partition("#")
        return f"[{label}]({os.path.relpath(name, os.path.dirname(uri))}{anchor or (own and '#' + own)})"

    parts = _FENCE.split(text)
    return "".join(part if part.lstrip().startswith("```") else _LINK.sub(link, part) for part in parts)


def recipe_page(app: str) -> str:
    """All recipes of an app, each as it stands."""
    lines = [f"# Recipes: {TITLES[app]}", "", f"Run one by its name: `collimate {app} train --config NAME`.", ""]
    for of, path in recipes():
        if of == app:
            lines += [f"## {path.stem}", "", "```yaml", path.read_text(encoding="utf-8").rstrip(), "```", ""]
    return "\n".join(lines)


@cache
def _targets() -> Mapping[Path, str]:
    """File -> page, for links."""
    found = {path.resolve(): uri for uri, path in included().items()}
    found |= {path.resolve(): f"recipes/{app}.md#{path.stem}" for app, path in recipes()}
    found |= {path.resolve(): str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    return found | {(ROOT / "tests" / "golden").resolve(): "proof.md", (ROOT / "README.md").resolve(): "index.md"}
