"""The page of the table."""

from __future__ import annotations

from collections.abc import Sequence

from .accepted import ACCEPTED
from .table import ROOT, Mistake, message_of

DOCUMENT = ROOT / "docs" / "mistakes.md"

HEAD = """# Mistakes and what is said about them

Every line below was provoked: the mistake was made, and what was printed stands beside it, with temporary paths
shortened to `...`. A message names the file or the key, the sample or the value, what was expected, and what to do; a
default test makes all of these mistakes again and fails where a message has lost a part. Written by
`python -m tools.mistakes`.
"""


TAKEN = (
    "## What is no mistake",
    "",
    "The same test does these too, which are taken as they are. A run goes on with another number of ranks or workers"
    " exactly where it stopped.",
    "",
)


def messages(rows: Sequence[Mistake]) -> list[tuple[Mistake, str]]:
    """Each mistake made, with what was printed."""
    found = []
    for row in rows:
        try:
            found.append((row, message_of(row.provoke)))
        except AssertionError as error:
            raise AssertionError(f"{row.provoke.__name__}: {error}") from None
    return found


def document(found: Sequence[tuple[Mistake, str]]) -> str:
    """The page: one table a subject."""
    lines = [HEAD]
    for subject in dict.fromkeys(row.subject for row, _ in found):
        lines += [f"## {subject}", "", "| What was done | What is printed |", "|---|---|"]
        lines += [f"| {_cell(row.done)} | {_quoted(message)} |" for row, message in found if row.subject == subject]
        lines.append("")
    return "\n".join([*lines, *TAKEN, *(f"- {_cell(done)}." for done, _ in ACCEPTED), ""])


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


def _quoted(message: str) -> str:
    """A message as code, whatever backticks it has."""
    ticks = "``" if "`" in message else "`"
    pad = " " if ticks == "``" else ""
    return f"{ticks}{pad}{_cell(message)}{pad}{ticks}"
