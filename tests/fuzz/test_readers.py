"""Damaged files: whatever the damage, a reader reads or refuses; it never breaks, hangs or takes the machine's memory.

The default run tries some damage of each kind of file. A longer hunt, in seconds for each reader:

    COLLIMATE_FUZZ_SECONDS=300 uv run pytest -m slow -n 2 tests/fuzz
"""

import os
import time
import warnings

import pytest
from hypothesis import HealthCheck, given, settings

from collimate.checkpoints.files import CheckpointError
from collimate.data.source import CorruptSample

from .mutations import damaged, edits
from .readers import READERS

CLEAN = (CorruptSample, CheckpointError, ValueError, OSError)
"""What may be raised: a sample that is counted and skipped, or a message for whoever named the file."""

FOUND = [
    ("csv", [("byte", 0.0, 13)]),
    ("las", [("head", 103, 127)]),
    ("graph.json", [("number", 0.0, b"1e308"), ("number", 0.0, b"255")]),
    ("mp4", [("cut", 0.6875)]),
    ("ply", [("number", 0.0625, b"4294967295")]),
    ("pt", [("drop", 0.0, 42), ("drop", 0.0, 64)]),
    ("tiff", [("head", 72, 2)]),
    ("wav", [("again", 0.0, 24)]),
    ("wav", [("head", 21, 1)]),
    ("wav", [("head", 27, 21)]),
    ("wav", [("head", 24, 127)]),
    ("mp3", [("head", 21, 1)]),
    ("mp3", [("byte", 0.0, 0), ("again", 0.0, 27), ("byte", 0.37221255666820086, 0)]),
]
"""Damage by which a reader once broke."""

SECONDS = 10  # of processor time, for a file of some kilobytes


def survives(name: str, data: bytes) -> None:
    read = READERS[name][1]
    begun = time.process_time()
    message = "read"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            read(data)
        except CLEAN as error:
            message = str(error)
    assert message, f"{name}: refused without a word"
    assert time.process_time() - begun < SECONDS, f"{name}: too slow"


def hunt(name: str, examples: int) -> None:
    whole = READERS[name][0]()

    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(edits)
    def attack(changes) -> None:
        survives(name, damaged(whole, changes))

    attack()


@pytest.mark.parametrize("name", READERS)
def test_whole_files_are_read(name):
    whole, read = READERS[name]
    if name in ("csv", "jsonl"):  # the pictures that they name are not there
        with pytest.raises(CLEAN, match=r"a\.png"):
            read(whole())
    else:
        read(whole())


@pytest.mark.parametrize("name", READERS)
def test_damaged_files_are_read_or_refused(name):
    hunt(name, 10)


@pytest.mark.parametrize(("name", "changes"), FOUND)
def test_what_hunts_have_found_stays_mended(name, changes):
    survives(name, damaged(READERS[name][0](), changes))


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", READERS)
def test_a_long_hunt(name):
    end = time.monotonic() + float(os.environ.get("COLLIMATE_FUZZ_SECONDS", "60"))
    while time.monotonic() < end:
        hunt(name, 500)
