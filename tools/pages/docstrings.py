"""Docstrings as Markdown: equations stay as they stand, lists are seen as lists, and `<x, y>` is no tag."""

from __future__ import annotations

import re

import griffe

_ITEM = re.compile(r"^\s{0,3}(?:[-*]|\d+\.) ")
_CODE = re.compile(r"(`+[^`]*`+)")


def as_markdown(docstring: str) -> str:
    """The text of a docstring as Markdown that shows what the source shows.

    Args:
        docstring: with its common indentation taken away, as `ast.get_docstring` gives it.
    """
    lines: list[str] = []
    block = False
    for line in docstring.splitlines():
        indented = line.startswith("    ")
        before = lines[-1] if lines else ""
        if line.strip():
            block = indented and (block or not before.strip())
        if _ITEM.match(line) and before.strip() and not _ITEM.match(before) and not before.startswith("  "):
            lines.append("")
        lines.append(line if block else _escaped(line))
    return "\n".join(lines)


class Docstrings(griffe.Extension):
    """Has every docstring pass through `as_markdown`, but for sections of arguments, which have a form of their own."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        if obj.docstring is not None:
            obj.docstring.value = _outside_sections(obj.docstring.value)


def _outside_sections(docstring: str) -> str:
    head, section, rest = _first_section(docstring)
    return as_markdown(head) + section + "\n".join(map(_escaped, rest.split("\n")))


def _first_section(docstring: str) -> tuple[str, str, str]:
    found = re.search(r"^(Args|Attributes|Returns|Raises|Yields):\n", docstring, re.MULTILINE)
    if found is None:
        return docstring, "", ""
    return docstring[: found.start()], "\n" + found[0], docstring[found.end() :]


def _escaped(line: str) -> str:
    """The line with what Markdown would take for a tag or emphasis written out, outside of code."""
    parts = _CODE.split(line)
    return "".join(part if part.startswith("`") else _plain(part) for part in parts)


def _plain(text: str) -> str:
    text = text.replace("<", "&lt;")
    text = re.sub(r"(?<!^)(?<!\*)\*(?!\*)", r"\\*", text)
    return re.sub(r"(?<![A-Za-z0-9])_(?=\S)|_(?![A-Za-z0-9])", r"\\_", text)
