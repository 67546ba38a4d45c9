"""Every mistake of the page is made: its message has its four parts, and the page has the message's."""

from collections import Counter
from pathlib import Path

import pytest

from tools.mistakes.accepted import ACCEPTED
from tools.mistakes.page import DOCUMENT, document
from tools.mistakes.rows import MISTAKES
from tools.mistakes.table import PARTS, message_of, shortened

PAGE = DOCUMENT.read_text(encoding="utf-8")


@pytest.mark.parametrize("row", MISTAKES, ids=lambda row: row.provoke.__name__)
def test_a_mistake_is_told_with_place_value_expectation_and_remedy(row):
    message = message_of(row.provoke)
    assert not row.lacking(message), message
    assert "Traceback" not in message
    (line,) = [line for line in PAGE.splitlines() if line.startswith(f"| {row.done} |")]
    assert not row.lacking(line), "run `python -m tools.mistakes`"


@pytest.mark.parametrize(("done", "run"), ACCEPTED, ids=lambda given: getattr(given, "__name__", ""))
def test_what_is_no_mistake_goes_through(done, run, tmp_path: Path):
    run(tmp_path)
    assert f"- {done}." in PAGE


def test_there_are_many_and_each_is_another():
    assert len(MISTAKES) >= 45
    assert max(Counter(row.done for row in MISTAKES).values()) == 1
    assert max(Counter(row.provoke.__name__ for row in MISTAKES).values()) == 1
    assert all(getattr(row, part) for row in MISTAKES for part in PARTS)


def test_the_page_has_no_other_rows():
    lines = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith("| What was done")]
    assert len(lines) == len(MISTAKES)
    assert document([]).splitlines()[0] == PAGE.splitlines()[0]


def test_what_fails_without_a_word_and_what_does_not_fail_are_found():
    with pytest.raises(AssertionError, match="nothing was said"):
        message_of(lambda folder: None)

    def ends_well(folder: Path) -> None:
        raise SystemExit(0)

    with pytest.raises(AssertionError, match="it went through"):
        message_of(ends_well)


def test_a_part_that_is_lost_is_found():
    row = MISTAKES[0]
    whole = " ".join(getattr(row, part) for part in PARTS)
    assert row.lacking(whole) == []
    assert row.lacking("Something went wrong.") == list(PARTS)


def test_paths_are_shortened(tmp_path: Path):
    assert shortened(f"There is no {tmp_path}/a.jpg.\n  Look.", tmp_path) == "There is no .../a.jpg. Look."
