"""What a row of the table is: a mistake that is really made, and the four parts that its message must have.

A message names the place (a file or a key), what was found there (the sample or the value), what was expected, and
what to do.
"""

from __future__ import annotations

import io
import logging
import re
import tempfile
import warnings
from collections.abc import Callable
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from collimate.cli import main
from collimate.data import commands

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("place", "found", "expected", "remedy")

Provoke = Callable[[Path], object]


@dataclass(frozen=True)
class Mistake:
    """One row.

    Attributes:
        subject: the heading that it stands under.
        done: what the user did.
        provoke: does it, given an empty folder; raises, or prints and exits.
        place, found, expected, remedy: words of the message, one for each part.
    """

    subject: str
    done: str
    provoke: Provoke
    place: str
    found: str
    expected: str
    remedy: str

    def lacking(self, message: str) -> list[str]:
        """The parts whose words the message does not have."""
        return [part for part in PARTS if getattr(self, part) not in message]


MISTAKES: list[Mistake] = []


def mistake(
    subject: str, done: str, place: str, found: str, expected: str, remedy: str
) -> Callable[[Provoke], Provoke]:
    """Put the function that makes the mistake into the table."""

    def register(provoke: Provoke) -> Provoke:
        MISTAKES.append(Mistake(subject, done, provoke, place, found, expected, remedy))
        return provoke

    return register


def command(*words: str | Path) -> None:
    """`collimate` with these words, in this process."""
    main([str(word) for word in words])


def message_of(provoke: Provoke) -> str:
    """What is printed, or raised, with paths shortened and white space made one.

    Raises:
        AssertionError: nothing fails and nothing is said.
    """
    said = io.StringIO()
    with tempfile.TemporaryDirectory() as name, ExitStack() as held:
        folder = Path(name)
        for enter in (redirect_stdout(said), redirect_stderr(said), warnings.catch_warnings(), _wide(said)):
            held.enter_context(enter)
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        held.callback(logging.disable, logging.NOTSET)
        raised, went_through = "", False
        try:
            provoke(folder)
        except SystemExit as end:
            went_through = not end.code
        except Exception as error:
            said.truncate(0)
            raised = str(error)
        text = raised or said.getvalue()
    assert not went_through, f"it went through: {text}"
    assert text.strip(), "nothing was said"
    return shortened(text, folder)


def shortened(text: str, folder: Path) -> str:
    """The text without this machine's paths and without bars of progress, on one line."""
    text = text.replace(str(folder), "...").replace(f"{ROOT}/", "")
    text = re.sub(rf"{tempfile.gettempdir()}/tmp\w+", "...", text)
    usage = re.compile(r"^usage: .*\ntip: For details of accepted options run: ([^\n]*)\nerror: ", re.DOTALL)
    text = usage.sub(r"(See \1.) ", text)
    lines = [
        line for line in text.splitlines() if not re.match(r"\s*(Decoding|Writing shards|Reading|Indexing) ", line)
    ]
    return (
        re.sub(r"\s+", " ", " ".join(lines))
        .replace("(Set COLLIMATE_TRACEBACK=1 to see where this was raised.)", "")
        .strip()
    )


class _wide:
    """While open, `collimate data` prints here, and does not break lines."""

    def __init__(self, file: io.StringIO) -> None:
        self.console = Console(file=file, width=10_000)

    def __enter__(self) -> None:
        self.before, commands.console = commands.console, self.console

    def __exit__(self, *_: object) -> None:
        commands.console = self.before
