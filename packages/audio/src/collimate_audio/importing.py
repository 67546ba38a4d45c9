"""Public data sets of labelled sound, as their authors lay them out, to tables that are sources like any other.

A row has a clip's `file`, relative to the table, and its `label`, or `labels` where there may be several; and what the
data set is divided by, `fold` or `split`. So `esc50.jsonl?fold=[1,2,3,4]` and `commands.jsonl?split=test` are data.
Clips that are not there are left out and counted.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import soundfile

from collimate.console import say
from collimate.data.classes import read_class_list
from collimate.data.decoding import SOUNDS
from collimate.data.files import write_atomically

TEN_WORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")  # Warden 2018, arXiv 1804.03209
SILENCE, UNKNOWN, NOISE = "silence", "unknown", "_background_noise_"
_YOUTUBE_ID = re.compile(r"Y(.{11})(?:_[\d.]+)*|(.{11})(?:_[\d.]+)*")

Row = dict[str, Any]


def import_esc50(input: str, output: str) -> None:
    """Write the table of ESC-50: 2000 clips of 5 s in 50 classes, in 5 folds for cross-validation.

    Args:
        input: the folder of the data set, with `meta/esc50.csv` and `audio/`.
        output: the table, a .jsonl file.

    Raises:
        FileNotFoundError: the table of the data set, or all of its clips, are missing.
        ValueError: the data set's table has other columns, or output is no .jsonl file.
    """
    folder = Path(input)

    def rows() -> Iterator[Row]:
        for row in _table(folder / "meta" / "esc50.csv", ("filename", "fold", "category")):
            name = row["category"].replace("_", " ")
            path = folder / "audio" / row["filename"]
            yield {"file": path, "label": name, "fold": int(row["fold"]), "recording": row.get("src_file")}

    _write(rows(), Path(output), "ESC-50")


def import_speech_commands(input: str, output: str, classes: Literal[12, 35] = 35, test: str | None = None) -> None:
    """Write the table of Speech Commands, version 1 or 2, in the official parts `train`, `val` and `test`.

    Args:
        input: the folder of the data set: one folder a word, `validation_list.txt`, `testing_list.txt`.
        output: the table, a .jsonl file.
        classes: 35 for all words as classes (30 in version 1). 12 for ten words, `unknown` for all others, and
            `silence`: the seconds of the background noises, which are written beside the table. The first four fifths
            of each noise train, then a tenth validates and the last tests, as nothing official says.
        test: for 12 classes, the folder of the official test set, a download of its own, whose clips then are `test`.

    Raises:
        FileNotFoundError: there is no such folder, or a list is missing.
        ValueError: a test set was given for all words, or output is no .jsonl file.
    """
    if test is not None and classes != 12:
        raise ValueError("The official test set has 12 classes: set classes to 12, or leave `test` out.")
    folder, table = Path(input), Path(output)
    parts = {
        name: part
        for part, file in (("val", "validation_list.txt"), ("test", "testing_list.txt"))
        for name in _lines(folder / file)
    }

    def rows() -> Iterator[Row]:
        for word, path in _by_folder(folder):
            part = parts.get(f"{path.parent.name}/{path.name}", "train")
            if word != NOISE and not (part == "test" and test):
                speaker = path.stem.partition("_nohash_")[0]
                yield {
                    "file": path,
                    "label": _of_twelve(word) if classes == 12 else word,
                    "split": part,
                    "speaker": speaker,
                }
        if classes == 12:
            yield from _silences(folder / NOISE, table.parent / SILENCE, with_test=test is None)
        for word, path in _by_folder(Path(test)) if test else ():
            yield {"file": path, "label": _of_twelve(word.strip("_")), "split": "test", "speaker": None}

    _write(rows(), table, "Speech Commands")


def import_audioset(input: str, segments: str, classes: str, output: str) -> None:
    """Write the table of a part of AudioSet, whose clips lie in a folder.

    Args:
        input: the folder of the clips, or one above it. A clip is known by its YouTube id, with which its name begins,
            as in `<id>.flac`, `Y<id>.wav` or `<id>_30.000_40.000.wav`.
        segments: the part's official list: `balanced_train_segments.csv`, `eval_segments.csv`, ...
        classes: `class_labels_indices.csv`.
        output: the table, a .jsonl file. Its labels are the classes' names.

    Raises:
        FileNotFoundError: a file, or every clip, is missing.
        ValueError: a file is not of the official form, or output is no .jsonl file.
    """
    names, mids = read_class_list(classes)
    if not mids:
        raise ValueError(f"{classes} has no column `mid`; expected AudioSet's class_labels_indices.csv.")
    name_of = dict(zip(mids, names, strict=True))
    clips = {_youtube_id(path.stem): path for path in _sounds(Path(input))}

    def rows() -> Iterator[Row]:
        for number, cells in enumerate(_segments(Path(segments)), 1):
            if len(cells) != 4:
                raise ValueError(
                    f"{segments}: entry {number} has {len(cells)} columns; expected id, start, end, labels."
                )
            labels = cells[3].split(",")
            if unknown := [mid for mid in labels if mid not in name_of]:
                raise ValueError(f"{segments}: entry {number} has the label {unknown[0]!r}, which {classes} has not.")
            found = [name_of[mid] for mid in labels]
            yield {"file": clips.get(cells[0]), "labels": found, "id": cells[0], "start": float(cells[1])}

    _write(rows(), Path(output), "AudioSet")


# Parts of them --------------------------------------------------------------------------------------------------


def _of_twelve(word: str) -> str:
    return word if word in (*TEN_WORDS, SILENCE) else UNKNOWN


def _silences(noises: Path, folder: Path, with_test: bool) -> Iterator[Row]:
    """The whole seconds of background noises, each written as a clip of its own."""
    for path in _sounds(noises):
        sound, rate = soundfile.read(path, dtype="int16")
        seconds = len(sound) // rate
        for second in range(seconds):
            part = "train" if second < 0.8 * seconds else "val" if second < 0.9 * seconds else "test"
            if part == "test" and not with_test:
                continue
            clip = folder / f"{path.stem}_{second:03d}.wav"
            clip.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(clip, sound[second * rate : (second + 1) * rate], rate)
            yield {"file": clip, "label": SILENCE, "split": part, "speaker": path.stem}


def _youtube_id(stem: str) -> str:
    """The 11 characters with which the name of a clip begins, some after a Y; times may follow."""
    found = _YOUTUBE_ID.fullmatch(stem)
    return stem if found is None else found.group(1) or found.group(2)


def _segments(path: Path) -> Iterator[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        yield from csv.reader((line for line in file if line.strip() and line[0] != "#"), skipinitialspace=True)


# Files ----------------------------------------------------------------------------------------------------------


def _by_folder(root: Path) -> Iterator[tuple[str, Path]]:
    """The sounds in the folders of a folder, each with the name of its own."""
    if not root.is_dir():
        raise FileNotFoundError(f"There is no folder {root}.")
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        for path in sorted(folder.iterdir()):
            if _is_sound(path):
                yield folder.name, path


def _sounds(root: Path) -> Iterable[Path]:
    if not root.is_dir():
        raise FileNotFoundError(f"There is no folder {root}.")
    return sorted(path for path in root.rglob("*") if _is_sound(path))


def _is_sound(path: Path) -> bool:
    return path.suffix[1:].lower() in SOUNDS and not path.name.startswith(".")


def _table(path: Path, columns: Iterable[str]) -> Iterator[dict[str, str]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        if missing := [column for column in columns if column not in (rows.fieldnames or ())]:
            raise ValueError(f"{path} has no column {missing[0]!r}; it has {', '.join(rows.fieldnames or ())}.")
        yield from rows


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _write(rows: Iterator[Row], table: Path, what: str) -> None:
    """The table of those rows whose clips are there, and a word on it.

    Raises:
        FileNotFoundError: there are none.
        ValueError: it is no .jsonl file.
    """
    if table.suffix != ".jsonl":
        raise ValueError(f"The table is a .jsonl file, not {str(table)!r}.")
    lines, missing, parts = [], 0, Counter[str]()
    for row in rows:
        if row["file"] is None or not row["file"].is_file():
            missing += 1
            continue
        name = Path(os.path.relpath(row["file"], table.parent)).as_posix()
        lines.append(json.dumps({**row, "file": name}, ensure_ascii=False) + "\n")
        parts[str(row.get("split", row.get("fold", "clips")))] += 1
    if not lines:
        raise FileNotFoundError(f"None of the {missing} clips that {what} lists is there. Is it unpacked?")
    write_atomically(table, "".join(lines).encode())
    counts = ", ".join(
        f"{count} {part}" if part.isalpha() else f"{count} in fold {part}" for part, count in sorted(parts.items())
    )
    say(f"{what}: {counts}: {table}" + (f"\nLeft out: {missing} clips that are not there." if missing else ""))
