"""Command lines that are parsed by the real parsers, with their recipes, and not carried out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jsonargparse
import pytest

from collimate import cli
from collimate.app import GROUPS, installed_apps
from collimate.training import run as training


class Parsed(Exception):
    """The command line was understood."""


def parse(words: Sequence[str], patch: pytest.MonkeyPatch) -> None:
    """Parse what follows `collimate`.

    Raises:
        SystemExit: an option, a value or a verb is wrong; the parser has said on the error stream what.
        ValueError, FileNotFoundError: a recipe is not there, or what it says cannot be.
    """
    patch.setattr(jsonargparse, "auto_cli", _parse_function)
    patch.setattr(training.TrainCLI, "instantiate_classes", _stop)
    apps = installed_apps()
    top = cli.top_parser(apps)
    if not words or words[0] in ("--help", "--version"):
        return
    depth = 1 if words[0] in cli.TOP_VERBS or words[0] == "completion" else 2
    options = top.parse_args(list(words if words[0] == "completion" else words[:depth]))
    rest = [word for word in words[depth:] if word != "--print_config"]
    if options.group == "completion" or getattr(options, "verb", "") is None:
        return
    app = apps.get(options.group)
    verbs = cli.TOP_VERBS if depth == 1 else GROUPS[options.group][1] if app is None else app.all_verbs
    verb = verbs[options.group if depth == 1 else options.verb]
    with pytest.raises(Parsed):
        _run(verb, rest, app, patch)


def _run(verb: Any, rest: list[str], app: Any, patch: pytest.MonkeyPatch) -> None:
    if verb.target == "collimate_audio.iterate:iterate":
        from collimate_audio.iterate import Iterations

        patch.setattr(Iterations, "run", _stop)
    cli.run(verb, rest, "collimate", app)


def _stop(*_: Any) -> None:
    raise Parsed


def _parse_function(function: Any, args: list[str], prog: str, parser_class: Any, **_: Any) -> None:
    parser = parser_class(prog=prog, allow_abbrev=False)
    parser.add_argument("--config", action=jsonargparse.ActionConfigFile)  # pyright: ignore[reportPrivateImportUsage]
    parser.add_function_arguments(function, as_group=False)
    parser.parse_args(args)
    raise Parsed
