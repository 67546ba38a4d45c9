"""The `collimate` command: finds the verb, and only then imports what it needs.

`collimate`, `collimate --help`, `collimate <app> --help` and `collimate list` import no torch.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import inspect
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from collimate import __version__
from collimate.app import GROUPS, App, Verb, installed_apps

TOP_VERBS: Mapping[str, Verb] = {
    "list": Verb("collimate.inventory:show", "show methods, recipes, encoders and losses"),
    "doctor": Verb("collimate.doctor:doctor", "tell what is installed, what works, and what to do about the rest"),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; the exit status is 0, 1 for a failure, 2 for a wrong command."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    apps = installed_apps()
    parser = top_parser(apps)
    if not arguments:
        parser.print_help()
        return
    # What follows the verb belongs to the verb's own parser, so only the words up to it are parsed here.
    depth = 1 if arguments[0] in TOP_VERBS or arguments[0] == "completion" else 2
    head, rest = arguments[:depth], arguments[depth:]
    if arguments[0] == "completion":
        head, rest = arguments, []
    options = parser.parse_args(head)
    if options.group == "completion":
        import shtab

        print(shtab.complete(parser, shell=options.shell))
        return
    if options.group in TOP_VERBS:
        _guarded(TOP_VERBS[options.group], rest, f"collimate {options.group}", None)
    elif options.verb is None:
        parser.parse_args([options.group, "--help"])
    else:
        app = apps.get(options.group)
        verbs = GROUPS[options.group][1] if app is None else app.all_verbs
        _guarded(verbs[options.verb], rest, f"collimate {options.group} {options.verb}", app)


def top_parser(apps: Mapping[str, App]) -> argparse.ArgumentParser:
    """The parser of the words up to the verb; shell completion is made from it too."""
    parser = argparse.ArgumentParser(
        prog="collimate",
        description="Train, evaluate and export multimodal contrastive models.",
        epilog="`collimate <app> --help` lists an app's verbs, `collimate <app> <verb> --help` a verb's options.",
    )
    parser.add_argument("--version", action="version", version=f"collimate {__version__}")
    groups = parser.add_subparsers(dest="group", metavar="<app or command>")
    for app in apps.values():
        summary = _plain(app.summary)
        _add_verbs(groups.add_parser(app.name, help=summary, description=summary), app.all_verbs)
    for name, (summary, verbs) in GROUPS.items():
        _add_verbs(groups.add_parser(name, help=_plain(summary)), verbs)
    for name, verb in TOP_VERBS.items():
        groups.add_parser(name, help=_plain(verb.summary), add_help=False)
    completion = groups.add_parser("completion", help="print a shell completion script")
    completion.add_argument("shell", choices=("bash", "zsh", "tcsh"))
    return parser


def _add_verbs(parser: argparse.ArgumentParser, verbs: Mapping[str, Verb]) -> None:
    subparsers = parser.add_subparsers(dest="verb", metavar="<verb>")
    for name, verb in verbs.items():
        subparsers.add_parser(name, help=_plain(verb.summary), add_help=False)


def _plain(text: str) -> str:
    """Text whose percent signs argparse leaves alone."""
    return text.replace("%", "%%")


def _guarded(verb: Verb, arguments: list[str], program: str, app: App | None) -> None:
    """Run a verb; a foreseeable failure prints its message alone, anything else its traceback too."""
    try:
        run(verb, arguments, program, app)
    except KeyboardInterrupt:
        _fail("stopped.", 130)
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        if os.environ.get("COLLIMATE_TRACEBACK") or not str(error):
            raise
        from collimate.arguments import plain

        _fail(f"{plain(str(error))}{_advice(error)}\n(Set COLLIMATE_TRACEBACK=1 to see where this was raised.)", 1)


def run(verb: Verb, arguments: list[str], program: str, app: App | None) -> Any:
    """Import the verb's function and call it with the options that its signature declares."""
    module, _, name = verb.target.partition(":")
    function = getattr(importlib.import_module(module), name)
    if "arguments" in inspect.signature(function).parameters:  # parses its own, as training does
        return function(arguments, program=program, app=app)
    from jsonargparse import auto_cli

    from collimate.arguments import Parser

    return auto_cli(
        function, args=arguments, prog=program, as_positional=False, allow_abbrev=False, parser_class=Parser
    )


def _advice(error: Exception) -> str:
    """What to do about what the system refuses, which says no more than that it does."""
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "\nA file needs more space than there is: free some, or choose an output on another disk."
    if number in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
        return "\nA folder that can be read and written is expected there: choose another one."
    return ""


def _fail(message: str, status: int) -> NoReturn:
    print(f"collimate: {message}", file=sys.stderr)
    raise SystemExit(status)
