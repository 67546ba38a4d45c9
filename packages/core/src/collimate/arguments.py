"""The option parser of every verb: an unknown key names the nearest valid one."""

from __future__ import annotations

import importlib
import re
from difflib import get_close_matches
from typing import Any, NoReturn

from jsonargparse import ArgumentParser

_NO_CLASS = re.compile(r"module '(collimate[\w.]*)' has no attribute '(\w+)'")
_UNKNOWN = re.compile(r"""(?:option|key|unrecognized arguments:)\s*['"]?(?:--)?([\w.\-]+)""", re.IGNORECASE)


class Parser(ArgumentParser):
    """jsonargparse's parser with suggestions."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        super().error(message + suggestion(message, self), ex)  # type: ignore[misc]
        raise AssertionError("unreachable")


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
