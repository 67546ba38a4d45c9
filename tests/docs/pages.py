"""The blocks and commands of READMEs and pages, as tests read them.

A comment in the line before a block says what becomes of it: `<!-- run -->` has commands executed and not only parsed,
`<!-- slow -->` has them executed by the slow tests, `<!-- skip: reason -->` leaves a block out and says why.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from collimate.app import GROUPS, installed_apps
from collimate.cli import TOP_VERBS

ROOT = Path(__file__).resolve().parents[2]

PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *ROOT.glob("packages/*/README.md"),
        *ROOT.glob("apps/*/README.md"),
        *(path for path in ROOT.glob("docs/*.md") if path.name != "proof.md"),
    ]
)

SHELLS = ("bash", "sh", "console", "")
_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\w*)(?P<info>[^\n]*)\n(?P<code>.*?)^(?P=indent)```", re.MULTILINE | re.DOTALL
)
_MARK = re.compile(r"<!--\s*(?P<word>run|slow|skip)(?::\s*(?P<reason>.*?))?\s*-->\s*$")
_TITLE = re.compile(r'title="([^"]+)"')
_INLINE = re.compile(r"(?<!`)`(collimate [^`\n]+)`(?!`)")
_RUNNERS = (("python3", "tools/uv.py", "run"), ("uv", "run"), ("torchrun",), ("srun",))
_FIRST = re.compile(r"^(?:\$ )?(?:python3 tools/uv\.py run |uv run |torchrun [^\n]*-m |srun |python -m )?collimate\b")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        mark: `run`, `slow`, `skip` or nothing.
        reason: why it is skipped.
        title: the file that it is to be saved as, or None.
    """

    path: Path
    line: int
    language: str
    code: str
    mark: str
    reason: str
    title: str | None

    @property
    def where(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}"


@dataclass(frozen=True)
class Command:
    """A `collimate` command of a page: the words after `collimate`."""

    where: str
    words: tuple[str, ...]
    mark: str

    def __str__(self) -> str:
        return shlex.join(("collimate", *self.words))


def blocks(path: Path) -> list[Block]:
    """The fenced blocks of a page, in their order."""
    text = path.read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(text):
        before = text[: match.start()]
        mark = _MARK.search(before[before.rstrip("\n").rfind("\n") + 1 :].strip()) if before.strip() else None
        indent = len(match["indent"])
        code = "".join(line[indent:] if line.strip() else line for line in match["code"].splitlines(keepends=True))
        title = _TITLE.search(match["info"])
        found.append(
            Block(
                path,
                before.count("\n") + 2,
                match["language"],
                code,
                mark["word"] if mark else "",
                (mark["reason"] or "") if mark else "",
                title[1] if title else None,
            )
        )
    return found


def commands(path: Path) -> list[Command]:
    """The commands of a page: those of its blocks, and those within its sentences."""
    found = []
    for block in blocks(path):
        if block.language in SHELLS and block.mark != "skip":
            for number, line in _lines(block.code):
                if words := _words(line):
                    found.append(Command(f"{block.path.relative_to(ROOT)}:{block.line + number}", words, block.mark))
    text = path.read_text(encoding="utf-8")
    prose = _FENCE.sub(lambda match: "\n" * match[0].count("\n"), text)
    for match in _INLINE.finditer(prose):
        where = f"{path.relative_to(ROOT)}:{prose[: match.start()].count(chr(10)) + 1}"
        if (words := _words(match[1])) and _is_whole(words):
            found.append(Command(where, words, ""))
    return found


def _lines(code: str) -> Iterator[tuple[int, str]]:
    """Commands, with continued lines joined. Where some lines begin with `$ `, the others are what was printed."""
    shown = any(line.startswith("$ ") for line in code.splitlines())
    held, first = "", 0
    for number, line in enumerate(code.splitlines()):
        if not held:
            first = number
        if line.rstrip().endswith("\\") and (held or _FIRST.match(line)):
            held += line.rstrip()[:-1] + " "
            continue
        whole, held = held + line, ""
        if _FIRST.match(whole.strip()) and (whole.startswith("$ ") or not shown):
            yield first, whole.strip()


def _words(line: str) -> tuple[str, ...]:
    words = shlex.split(line.removeprefix("$ "), comments=True)
    if "collimate" not in words:
        return ()
    words = words[words.index("collimate") + 1 :]
    ends = [place for place, word in enumerate(words) if word in ("|", "&&", ";", ">", ">>")]
    return tuple(words[: ends[0]] if ends else words)


def _is_whole(words: tuple[str, ...]) -> bool:
    """Whether words in a sentence are a command that could be typed, and not one that is hinted at."""
    if any("..." in word or "<" in word or word.isupper() for word in words):
        return False
    apps = installed_apps()
    if words[0] in TOP_VERBS or words[0] == "completion":
        return True
    verbs = apps[words[0]].all_verbs if words[0] in apps else GROUPS.get(words[0], ("", {}))[1]
    return len(words) > 2 and words[1] in verbs and words[2].startswith("--")
