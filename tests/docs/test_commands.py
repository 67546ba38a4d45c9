"""Every `collimate` command of READMEs and pages is one that the command line understands."""

from pathlib import Path

import pytest

from .pages import PAGES, Command, commands
from .parsing import parse

COMMANDS: dict[tuple[str, ...], Command] = {}
for page in PAGES:
    for command in commands(page):
        COMMANDS.setdefault(command.words, command)


def test_there_are_commands():
    assert len(COMMANDS) > 100


@pytest.mark.parametrize("command", COMMANDS.values(), ids=lambda command: f"{command.where}")
def test_it_is_understood(command: Command, inputs: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.chdir(inputs)
    monkeypatch.syspath_prepend(inputs)
    try:
        parse(command.words, monkeypatch)
    except SystemExit as wrong:
        if wrong.code not in (0, None):
            pytest.fail(f"{command.where}: {command}\n{capsys.readouterr().err[-2000:]}")
