"""Names of modules, classes and functions that READMEs and pages speak of exist."""

import re
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from tools.pages.sources import PACKAGES, source_folder

from .pages import PAGES, ROOT

_CODE = re.compile(r"`([^`\n]+)`")
_DOTTED = re.compile(r"^(collimate(?:_\w+)?(?:\.\w+)+)(?:\(.*\))?$")
_CLASS = re.compile(r"^([A-Z][a-z]\w*[A-Z]\w*|[A-Z]{2,}[a-z]\w+)(?:\(.*\))?$")


GROUPS = {group for group in entry_points().groups if group.startswith("collimate")}
"""Of entry points, whose names look like those of modules."""

NOW = [page for page in PAGES if page.name != "CHANGELOG.md"]  # which tells of names as they were


@pytest.mark.parametrize("page", NOW, ids=lambda page: str(page.relative_to(ROOT)))
def test_dotted_names_exist(page: Path):
    missing = sorted(name for name in _named(page, _DOTTED) - GROUPS if not name.endswith(".py") and not _exists(name))
    assert not missing, f"{page.relative_to(ROOT)} speaks of {missing}"


def test_names_to_move_over_to_exist():
    """The last column of the tables, where classes are named without their module."""
    files = (path.read_text() for package in PACKAGES for path in source_folder(package).rglob("*.py"))
    known = {name for text in files for name in re.findall(r"^class (\w+)", text, re.MULTILINE)}
    lines = (ROOT / "docs" / "moving.md").read_text().splitlines()
    cells = [line.split(" | ")[-1] for line in lines if line.startswith("| ")]
    named = {match[1] for cell in cells for code in _CODE.findall(cell) if (match := _CLASS.match(code))}
    assert len(named) > 20
    assert not named - known


def _named(page: Path, pattern: re.Pattern[str]) -> set[str]:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return {match[1] for code in _CODE.findall(text) if (match := pattern.match(code))}


@cache
def _exists(name: str) -> bool:
    """Whether a dotted name leads from a module to something; the last steps may be attributes."""
    parts = name.split(".")
    for depth in range(len(parts), 0, -1):
        try:
            found = import_module(".".join(parts[:depth]))
        except ImportError:
            continue
        for part in parts[depth:]:
            if not hasattr(found, part):
                return part in getattr(found, "__annotations__", {})
            found = getattr(found, part)
        return True
    return False
