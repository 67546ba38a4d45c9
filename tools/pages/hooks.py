"""What mkdocs calls while it builds: the pages that are written from the repository join those of docs/."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # mkdocs is a program of its own and does not look where it was started

from mkdocs.config.defaults import MkDocsConfig  # noqa: E402
from mkdocs.structure.files import File, Files  # noqa: E402

from tools.pages import guides, methods, reference  # noqa: E402


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """The navigation of written pages takes the place of its headings in mkdocs.yml."""
    written = {
        "Guides": [{guides.TITLES[app]: f"guides/{app}.md"} for app in guides.TITLES],
        "Methods": _methods(),
        "Recipes": [{guides.TITLES[app]: f"recipes/{app}.md"} for app in guides.TITLES],
        "Reference": [
            {package: [f"reference/{package}/index.md", *({name: reference.uri_of(name)} for name in names)]}
            for package, names in reference.modules().items()
        ],
    }
    config.nav = [_filled(entry, written) for entry in config.nav or []]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the written pages."""
    for uri, text in written_pages().items():
        files.append(File.generated(config, uri, content=text))
    return files


def written_pages() -> dict[str, str]:
    """Page -> Markdown, of all that is not in docs/."""
    found = {uri: guides.page_of(uri, path) for uri, path in guides.included().items()}
    found |= {f"recipes/{app}.md": guides.recipe_page(app) for app in guides.TITLES}
    found |= {"methods/index.md": methods.index(), **{page.uri: page.text() for page in methods.pages()}}
    names = [name for names in reference.modules().values() for name in names]
    return found | {reference.uri_of(name): reference.page_of(name) for name in names}


def _methods() -> list[Any]:
    groups: dict[str, list[Any]] = {}
    for page in methods.pages():
        groups.setdefault(methods.GROUPS[page.package], []).append({page.title: page.uri})
    return ["methods/index.md", *({group: entries} for group, entries in groups.items())]


def _filled(entry: Any, written: dict[str, list[Any]]) -> Any:
    if isinstance(entry, dict):
        [(title, content)] = entry.items()
        return {title: written[title]} if content == "written" else entry
    return entry
