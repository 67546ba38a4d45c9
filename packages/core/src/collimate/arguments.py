"""The option parser of every verb: an unknown key names the nearest valid one, and messages say what is wrong alone."""

from __future__ import annotations

import importlib
import re
import textwrap
from difflib import get_close_matches
from typing import Any, NoReturn

from jsonargparse import ArgumentParser

_NO_CLASS = re.compile(r"module '(collimate[\w.]*)' has no attribute '(\w+)'")
_UNKNOWN = re.compile(r"""(?:option|key|unrecognized arguments:)\s*['"]?(?:--)?([\w.\-]+)""", re.IGNORECASE)


_UNION = re.compile(
    r"(?:^ *- Expected a path but .* either not accessible or invalid\n)?"
    r"^(?P<indent> *)(?:- )?Does not validate against any of the Union subtypes\n"
    r" *Subtypes: .*\n *Errors:\n(?P<errors>(?:.*\n)*?) *Given value type: .*\n *Given value: (?P<value>.*)$",
    re.MULTILINE,
)
_NONE = re.compile(r"^ *- Expected a <class 'NoneType'>\n", re.MULTILINE)
_BULLET = re.compile(r"^( *)- ", re.MULTILINE)


class Parser(ArgumentParser):
    """jsonargparse's parser with suggestions."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        super().error(plain(message) + suggestion(message, self), ex)  # type: ignore[misc]
        raise AssertionError("unreachable")


def plain(message: str) -> str:
    """A message of jsonargparse without what it tried and what it was given: where a class was to be built from a whole
    recipe, that is a page of settings, and the one sentence that helps is lost in it.
    """

    def shortened(found: re.Match[str]) -> str:
        errors = _NONE.sub("", found["errors"]) or found["errors"]
        told = textwrap.dedent(_BULLET.sub(r"\1", errors)).rstrip()
        value = "" if found["value"].startswith(("Namespace(", "NestedArg(", "{")) else f"\nGot value: {found['value']}"
        return textwrap.indent(told + value, found["indent"])

    while (shorter := _UNION.sub(shortened, message)) != message:
        message = shorter
    return message


def suggestion(message: str, parser: Any) -> str:
    """A sentence that names the options nearest to the unknown one in an error message, or nothing."""
    if "Did you mean" in message:  # jsonargparse knows the options of a nested class
        return ""
    if lacking := _NO_CLASS.search(message):
        near = get_close_matches(lacking[2], dir(importlib.import_module(lacking[1])), n=1)
        hint = f"\nDid you mean '{lacking[1]}.{near[0]}'?" if near else ""
        return f"{hint}\n`collimate list` shows what there is."
    if re.search(r"unrecognized arguments: [^-]", message):
        return "\nEvery option needs its name before it, as the usage above shows."
    if not re.search(r"not accept|unrecognized|not expected|no action for", message, re.IGNORECASE):
        return ""
    known = {action.dest: action.dest for action in parser._actions}
    for dest in list(known):
        known.setdefault(dest.rsplit(".", 1)[-1], dest)
    for unknown in _UNKNOWN.findall(message):
        name = unknown.replace("-", "_")
        near = get_close_matches(name, known, n=1, cutoff=0.5) or get_close_matches(
            name.rsplit(".", 1)[-1], known, n=1, cutoff=0.5
        )
        if near:
            return f"\nDid you mean {known[near[0]]!r}?"
    return ""
