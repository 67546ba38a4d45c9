"""A page a method: its docstring, its axes, recipes, golden sets and claims, all from where they stand already."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from markdown.extensions.toc import slugify

from collimate import inventory
from tools.pages.docstrings import as_markdown
from tools.pages.sources import APPS, PACKAGES, ROOT, claim_results, golden_sets, imported, module_of, tree
from tools.proof import claim_tables

NOT_METHODS = ("collimate_vision_language.cloc.", "collimate_3d.evaluation.")
"""Parts of methods, which share a base's name with one, and adapters that only evaluations make."""

GROUPS = {
    "collimate_vision_language": "Images and text",
    "collimate_audio": "Audio",
    "collimate_video": "Video",
    "collimate_medical": "Medical",
    "collimate_3d": "3D",
    "collimate": "Any encoder",
}


@dataclass(frozen=True)
class MethodPage:
    """A method by its public name, and what there is of it."""

    name: str
    summary: str

    @property
    def package(self) -> str:
        return self.name.partition(".")[0]

    @property
    def short(self) -> str:
        return self.name.rpartition(".")[2]

    @property
    def uri(self) -> str:
        return f"methods/{PACKAGES[self.package]}/{self.short}.md".lower()

    @property
    def title(self) -> str:
        """The first words of the module's docstring, where they are a name."""
        first = self._docstrings[0].partition("\n")[0] if self._docstrings else ""
        head = first.partition(":")[0]
        return head if 0 < len(head) < 24 and head.replace("-", "").lower() == self.short.lower() else self.short

    def text(self) -> str:
        """The page in Markdown."""
        parts = [f"# {self.title}", self._what(), *map(as_markdown, self._docstrings), *self._composition()]
        parts += [*self._recipes(), *self._parity(), *self._claims(), *self._guide()]
        return "\n\n".join([*parts, f"## Arguments\n\nIn the reference: [`{self.name}`][{self.name}]."]) + "\n"

    def _what(self) -> str:
        return f"`{self.name}` · source: `{self._file.relative_to(ROOT)}`"

    @property
    def _file(self) -> Path:
        return module_of(self.name)

    @property
    def _files(self) -> list[Path]:
        """The method's own file, or all of its folder where it has one."""
        folder = self._file.parent
        shared = {"pretraining", "detection", "training", self.package}
        return [self._file] if folder.name in shared else sorted(folder.glob("*.py"))

    @property
    def _docstrings(self) -> list[str]:
        """What the folder says of itself, and then the file."""
        folder = [each for each in self._files if each.name == "__init__.py"]
        found = [ast.get_docstring(tree(each)) or "" for each in [*folder, self._file]]
        return [text for text in dict.fromkeys(found) if "\n" in text] or [text for text in found if text][:1]

    def _composition(self) -> Iterator[str]:
        for row in _contrasts():
            if row[0] == self.name:
                head = " | ".join(inventory.AXES)
                yield f"## What it contrasts\n\n| {head} |\n|---|---|---|---|\n| {' | '.join(row[1:])} |"

    def _recipes(self) -> Iterator[str]:
        rows = [
            f"- [`{path.stem}`](../../recipes/{app}.md#{path.stem}): {_first_comment(path)}\n"
            f"  `collimate {app} train --config {path.stem}`"
            for app, path in recipes()
            if self.name in class_paths(path)
        ]
        if rows:
            yield "## Recipes\n\n" + "\n".join(rows)

    def _parity(self) -> Iterator[str]:
        """The golden sets whose tests use something that this method defines, or a loss that it computes."""
        defined = {node.name for path in self._files for node in tree(path).body if isinstance(node, _DEFINITIONS)}
        used = {name for path in self._files for name in imported(path) if name.endswith(("_loss", "_losses"))}
        rows = []
        for path in sorted((ROOT / "tests" / "golden").glob("test_*.py")):
            if imported(path) & (defined | used) and (sets := sorted(golden_sets(path))):
                links = ", ".join(f"[`{each}`](../../proof.md#parity)" for each in sets)
                rows.append(f"- {_claim(path)} {links}")
        if rows:
            yield "## Equal to the official numbers\n\n" + "\n".join(rows)

    def _claims(self) -> Iterator[str]:
        for path in sorted((ROOT / "tests" / "claims").glob("test_*.py")):
            names = claim_results(path)
            if names and self.short in imported(path) and self.short.lower() in _claim(path).lower():
                yield f"## The paper's claims\n\n{_claim(path)}"
                for name in sorted(names):
                    yield from _results(path.parent / "results" / f"{name}.json")

    def _guide(self) -> Iterator[str]:
        app = next((app for app, folder in APPS.items() if folder == PACKAGES[self.package]), None)
        if app is not None:
            guide = f"../../guides/{app}.md"
            parts = [f"[{title}]({guide}#{slugify(title, '-')})" for title in self._headings(app)]
            where = f"In the [guide of `collimate {app}`]({guide})" + (f": {', '.join(parts)}" if parts else "")
            yield f"## Commands and results\n\n{where}."

    def _headings(self, app: str) -> list[str]:
        """The guide's headings that name the method."""
        guide = (ROOT / "apps" / APPS[app] / "README.md").read_text(encoding="utf-8")
        prose = re.sub(r"^```.*?^```", "", guide, flags=re.MULTILINE | re.DOTALL)
        found = re.findall(r"^##+ (.+)$", prose, re.MULTILINE)
        return [title for title in found if {self.title, self.short} & set(re.findall(r"[\w-]+", title))]


_DEFINITIONS = (ast.ClassDef, ast.FunctionDef)


@cache
def pages() -> list[MethodPage]:
    """Every method, in the order of the groups."""
    found = [MethodPage(*row) for row in inventory.methods() if not row[0].startswith(NOT_METHODS)]
    order = list(GROUPS)
    return sorted(found, key=lambda page: (order.index(page.package), page.short.lower()))


def index() -> str:
    """The list of methods, with a line each."""
    lines = [
        "# Methods",
        "",
        "One file a method; the pages are written from the files. What each contrast is composed of, side by side: "
        "[contrasts](../contrasts.md). The same list in a terminal: `collimate list --kind methods`.",
    ]
    for package, group in GROUPS.items():
        lines += ["", f"## {group}", "", "| method | what it is |", "|---|---|"]
        lines += [
            f"| [{page.title}]({page.uri.removeprefix('methods/')}) | {as_markdown(_headline(page))} |"
            for page in pages()
            if page.package == package
        ]
    return "\n".join(lines) + "\n"


def _results(path: Path) -> Iterator[str]:
    """What an experiment found, as on the page of proofs."""
    link = f"[Proof](../../proof.md#{path.stem})"
    if path.is_file():
        yield "\n".join(claim_tables(json.loads(path.read_text(encoding="utf-8"))["values"])).strip()
        yield f"Seeds, machine and settings: {link}."
    else:
        yield "It has not been run yet."


def _headline(page: MethodPage) -> str:
    return page.summary.removesuffix("; see the module.").replace("|", r"\|")


@cache
def _contrasts() -> list[tuple[str, ...]]:
    return list(inventory.contrasts())


@cache
def recipes() -> list[tuple[str, Path]]:
    """(app, file) of every recipe."""
    return [(app, path) for app, name in APPS.items() for path in sorted((ROOT / "configs" / name).glob("*.yaml"))]


@cache
def class_paths(path: Path) -> set[str]:
    """The classes that a recipe names."""
    return set(re.findall(r"class_path:\s*([\w.]+)", path.read_text(encoding="utf-8")))


def _first_comment(path: Path) -> str:
    return path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")


def _claim(path: Path) -> str:
    """The first line of a test module."""
    return as_markdown((ast.get_docstring(tree(path)) or path.stem).partition("\n\n")[0].replace("\n", " "))
