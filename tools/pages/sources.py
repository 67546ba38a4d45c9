"""What the pages are written from: where classes stand in the source, and which tests and recipes speak of them."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

APPS = {
    "vision-language": "vision_language",
    "audio": "audio",
    "video": "video",
    "medical": "medical",
    "three-d": "three_d",
}
"""An app, as typed, and its folder."""

PACKAGES = {
    "collimate": "core",
    "collimate_vision_language": "vision_language",
    "collimate_audio": "audio",
    "collimate_video": "video",
    "collimate_medical": "medical",
    "collimate_3d": "three_d",
    "collimate_world": "world",
}
"""A package, as imported, and its folder."""


def source_folder(package: str) -> Path:
    return ROOT / "packages" / PACKAGES[package] / "src" / package


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def exported(init: Path) -> list[str]:
    """The `__all__` of a module, in its order."""
    for node in tree(init).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            return list(ast.literal_eval(node.value))
    return []


@cache
def module_of(name: str) -> Path:
    """The file that defines the class of a public name.

    Raises:
        LookupError: no file of the package does.
    """
    package, _, rest = name.partition(".")
    wanted = rest.rpartition(".")[2]
    for path in sorted(source_folder(package).rglob("*.py")):
        if any(isinstance(node, ast.ClassDef) and node.name == wanted for node in tree(path).body):
            return path
    raise LookupError(f"no file of {package} defines {wanted}")


@cache
def imported(path: Path) -> set[str]:
    """The names that a file imports from the project's packages."""
    found: set[str] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PACKAGES:
            found |= {alias.name for alias in node.names}
    return found


@cache
def golden_sets(path: Path) -> set[str]:
    """The sets that a test module of tests/golden names."""
    names = {each.name for each in (ROOT / "tests" / "golden" / "data").iterdir()}
    texts = (node.value for node in ast.walk(tree(path)) if isinstance(node, ast.Constant))
    return {text for text in texts if isinstance(text, str) and text.partition("/")[0] in names}


def claim_results(path: Path) -> set[str]:
    """The results that a test module of tests/claims writes."""
    calls = (node for node in ast.walk(tree(path)) if isinstance(node, ast.Call) and node.args)
    names = (node.args[0] for node in calls if getattr(node.func, "id", "") == "compare")
    return {str(node.value) for node in names if isinstance(node, ast.Constant)}
