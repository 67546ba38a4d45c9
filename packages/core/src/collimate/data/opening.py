"""One line of text to a source: what configurations and the command line name data by."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any
from urllib.parse import parse_qsl

import yaml

from collimate.data.folders import FolderSource
from collimate.data.hugging_face import HuggingFaceSource
from collimate.data.shards import ShardSource
from collimate.data.source import Source
from collimate.data.tables import TableSource

KINDS = (
    "a folder of pictures or of sounds, a folder of .tar shards, a pattern of shards (shards/{000000..000012}.tar, "
    "shards/*.tar, s3://...), a .csv, .tsv or .jsonl table, hf:<path or name of a Hugging Face dataset>"
)
_PREFIX = re.compile(r"^([a-z][a-z0-9_-]*):(?!//)(.*)$", re.DOTALL)


def open_source(spec: str | os.PathLike[str] | Source, **options: Any) -> Source:
    """Open what a specification names.

    Args:
        spec: a folder; a pattern of shards; a table; `hf:<path>`; or `<name>:<what>` where an installed package offers
            sources of that name (entry-point group `collimate.sources`), as `world:train`. After a `?` may follow
            options of the source, or for tables conditions on columns: `manifest.jsonl?split=train`.
            A source is returned as it is.
        options: of the source's class.

    Raises:
        FileNotFoundError: there is no such file, or nothing in the folder.
        ValueError: nothing is known by which to open it.
    """
    if not isinstance(spec, str | os.PathLike):
        return spec
    text = os.fspath(spec)
    path, _, query = text.partition("?") if not os.path.exists(text) else (text, "", "")
    options = {**{key: yaml.safe_load(value) for key, value in parse_qsl(query)}, **options}
    if match := _PREFIX.match(path):
        return _named(match.group(1), match.group(2), options)
    if path.endswith((".csv", ".tsv", ".jsonl")):
        columns, where, name = (options.pop(key, None) for key in ("columns", "where", "name"))
        return TableSource(path, columns, {**(where or {}), **options}, name)
    if names_shards(path):
        return _made(ShardSource, path, options)
    if os.path.isdir(path):
        return _made(FolderSource, path, options)
    if not os.path.exists(path):
        raise FileNotFoundError(f"There is no {path!r}. Data is named as {KINDS}{_offered()}.")
    raise ValueError(f"Cannot tell what {path!r} holds. Data is named as {KINDS}{_offered()}.")


def names_shards(spec: str) -> bool:
    """Whether a specification names tar shards: by its ending, as a URL, or as a folder that holds some."""
    path = spec.partition("?")[0]
    if _PREFIX.match(path):
        return False
    folder = os.path.isdir(path) and any(entry.name.endswith(".tar") for entry in os.scandir(path))
    return folder or path.endswith(".tar") or "://" in path


def _named(name: str, what: str, options: dict[str, Any]) -> Source:
    if name == "hf":
        return _made(HuggingFaceSource, what, options, "hf:")
    for entry in entry_points(group="collimate.sources", name=name):
        return _made(entry.load(), what, options, f"{name}:")
    raise ValueError(f"No installed package offers {name!r} sources. Data is named as {KINDS}{_offered()}.")


def _made(kind: Callable[..., Source], what: str, options: dict[str, Any], name: str = "") -> Source:
    """A source of a kind, whose options are those of its constructor."""
    parameters = inspect.signature(kind).parameters
    known = list(parameters)[1:]
    further = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values())  # of a source within
    if not further and (unknown := sorted(options.keys() - known)):
        raise ValueError(f"{name}{what} has no option {', '.join(unknown)}; it has {', '.join(known)}.")
    return kind(what, **options)


def _offered() -> str:
    return "".join(f", {name}:..." for name in sorted(entry_points(group="collimate.sources").names))
