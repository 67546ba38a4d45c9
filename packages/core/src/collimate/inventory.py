"""What is installed: methods, recipes, encoders, losses. Read from source files, so nothing is imported."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from collimate.app import installed_apps

Kind = Literal["methods", "recipes", "encoders", "losses", "contrasts"]
AXES = ("similarity", "targets", "weights", "negatives")


def show(kind: Kind | None = None) -> None:
    """Show methods, recipes, encoders and losses, by the names that configurations use, and what contrasts are made of.

    Args:
        kind: show only one kind.
    """
    from rich.console import Console
    from rich.table import Table

    tables = {"methods": methods, "recipes": recipes, "encoders": encoders, "losses": losses}
    for name, rows in (tables | {"contrasts": contrasts}).items():
        if kind not in (None, name):
            continue
        table = Table(title=name, title_justify="left", box=None, pad_edge=False)
        table.add_column("name", style="bold", no_wrap=True)
        for column in AXES if name == "contrasts" else ("what it is",):
            table.add_column(column)
        for row in sorted(rows()):
            table.add_row(*row)
        Console().print(table, "")


def methods() -> Iterator[tuple[str, str]]:
    """Every class that derives from Method, with its first line."""
    return _subclasses("Method")


def encoders() -> Iterator[tuple[str, str]]:
    """Every class that derives from Encoder, with its first line."""
    return _subclasses("Encoder")


def recipes() -> Iterator[tuple[str, str]]:
    """Every recipe of every installed app, with the first comment line of its file."""
    for app in installed_apps().values():
        for name, path in app.recipes().items():
            first = path.read_text(encoding="utf-8").splitlines()[0]
            yield f"{app.name} {name}", first.lstrip("# ") if first.startswith("#") else ""


def losses() -> Iterator[tuple[str, str]]:
    """Every public function of `collimate.losses`, with its first line."""
    folder = _folder("collimate") / "losses"
    public = _exported(folder / "__init__.py")
    for path in folder.glob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name in public:
                yield f"collimate.losses.{node.name}", _first_line(node)


def contrasts() -> Iterator[tuple[str, ...]]:
    """Every loss and method that `collimate.losses.composition.composed` declares, with its choice on each axis."""
    for package in _packages():
        exported = _exported(_folder(package) / "__init__.py")
        for path in sorted(_folder(package).rglob("*.py")):
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.FunctionDef | ast.ClassDef) and (choices := _declared(node)):
                    module = package if node.name in exported else _public_module(package, path, node.name)
                    yield f"{module}.{node.name}", *(choices.get(axis, "none") for axis in AXES)


def _declared(node: ast.FunctionDef | ast.ClassDef) -> dict[str, str]:
    for call in node.decorator_list:
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "composed":
            return {str(given.arg): ast.literal_eval(given.value) for given in call.keywords}
    return {}


def _subclasses(base: str) -> Iterator[tuple[str, str]]:
    core = {base}
    for package in _packages():
        # Packages build on the core's classes, and never on one another's: names mean something else there.
        known = core if package == "collimate" else set(core)
        exported = _exported(_folder(package) / "__init__.py")
        for path in sorted(_folder(package).rglob("*.py")):
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if not isinstance(node, ast.ClassDef) or node.name.startswith("_"):
                    continue
                if any(isinstance(parent, ast.Name) and parent.id in known for parent in node.bases):
                    known.add(node.name)
                    module = package if node.name in exported else _public_module(package, path, node.name)
                    yield f"{module}.{node.name}", _first_line(node)


def _packages() -> list[str]:
    """Import names of the installed Collimate packages: `collimate-3d` is imported as `collimate_3d`."""
    names = {distribution.metadata["Name"].replace("-", "_") for distribution in distributions()}
    return sorted(name for name in names if name.split("_")[0] == "collimate" and find_spec(name))


def _public_module(package: str, path: Path, name: str) -> str:
    """The nearest parent package that exports `name`, else the module itself."""
    root = _folder(package)
    for parent in path.relative_to(root).parents:
        if name in _exported(root / parent / "__init__.py"):
            return ".".join([package, *parent.parts])
    return ".".join([package, *path.relative_to(root).with_suffix("").parts])


def _exported(init: Path) -> set[str]:
    if not init.is_file():
        return set()
    for node in ast.parse(init.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            return set(ast.literal_eval(node.value))
    return set()


def _folder(package: str) -> Path:
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def _first_line(node: ast.ClassDef | ast.FunctionDef) -> str:
    return (ast.get_docstring(node) or "").partition("\n")[0]
