"""Public data sets of described videos, as their authors lay them out, to tables that are sources like any other.

A row has a video's `file`, relative to the table, its `captions`, its `split` and its `id`, so that
`msrvtt.jsonl?split=test` is data. Videos that are not there are left out and counted.
"""

from __future__ import annotations

import csv
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from collimate.console import say
from collimate.data.files import write_atomically
from collimate_video.reading import VIDEOS


class Described(NamedTuple):
    """A video of a data set."""

    id: str
    captions: list[str]
    split: str
    labels: tuple[str, ...] = ()


def import_msrvtt(videos: str, annotations: str, test: str, output: str, train: str | None = None) -> None:
    """Write the table of MSR-VTT with the split 1k-A: 1000 test videos, each with one of its sentences.

    Args:
        videos: the folder of the videos, named by their ids, or one above it.
        annotations: `MSRVTT_data.json` or `train_val_videodatainfo.json`: the sentences of all videos.
        test: `MSRVTT_JSFUSION_test.csv`, with the columns `video_id` and `sentence`.
        output: the table, a .jsonl file.
        train: a list of the training videos with the column `video_id`, such as `MSRVTT_train.9k.csv` or
            `MSRVTT_train.7k.csv`; all that are not in `test` if None.

    Raises:
        FileNotFoundError: a file, or every video, is missing.
        ValueError: a file is not of that form, or output is no .jsonl file.
    """
    sentences = defaultdict(list)
    for each in _json(annotations, "sentences"):
        sentences[each["video_id"]].append(each["caption"])
    tests = {row["video_id"]: row["sentence"] for row in _csv(test, ("video_id", "sentence"))}
    chosen = [row["video_id"] for row in _csv(train, ("video_id",))] if train else [*sentences]
    found = [Described(name, sentences[name], "train") for name in chosen if name not in tests and name in sentences]
    _write(found + [Described(name, [text], "test") for name, text in tests.items()], videos, output, "MSR-VTT")


def import_didemo(videos: str, annotations: str, output: str) -> None:
    """Write the table of DiDeMo for retrieval by paragraphs: the sentences of a video one after the other.

    Args:
        videos: the folder of the videos, or one above it; suffixes may be others than in the annotations.
        annotations: the folder of `train_data.json`, `val_data.json` and `test_data.json`.
        output: the table, a .jsonl file.

    Raises:
        FileNotFoundError: a file, or every video, is missing.
        ValueError: a file is not of that form, or output is no .jsonl file.
    """
    found = []
    for split in ("train", "val", "test"):
        paragraphs = defaultdict(list)
        for each in _json(Path(annotations) / f"{split}_data.json"):
            paragraphs[Path(each["video"]).stem].append(each["description"].strip().rstrip("."))
        found += [Described(name, [". ".join(texts) + "."], split) for name, texts in paragraphs.items()]
    _write(found, videos, output, "DiDeMo")


def import_msvd(videos: str, annotations: str, output: str) -> None:
    """Write the table of MSVD: 1970 videos with some 40 sentences each.

    Args:
        videos: the folder of the videos, named by their ids, or one above it.
        annotations: the folder of `AllVideoDescriptions.txt` and of `train_list.txt`, `val_list.txt`, `test_list.txt`.
        output: the table, a .jsonl file.

    Raises:
        FileNotFoundError: a file, or every video, is missing.
        ValueError: output is no .jsonl file.
    """
    folder, sentences = Path(annotations), defaultdict(list)
    for line in _lines(folder / "AllVideoDescriptions.txt"):
        name, _, text = line.partition(" ")
        if text and not line.startswith("#"):
            sentences[name].append(text.strip())
    found = [
        Described(name, sentences[name], split)
        for split in ("train", "val", "test")
        for name in _lines(folder / f"{split}_list.txt")
        if name in sentences
    ]
    _write(found, videos, output, "MSVD")


def import_video_qa(
    videos: str, annotations: str, output: str, answers: int = 1500, mapping: str | None = None
) -> None:
    """Write the table of MSRVTT-QA or MSVD-QA, a row a question, and the most frequent answers beside it.

    Questions with another answer are left out, of tests too, where the published accuracy counts them as wrong: what is
    printed says by which share to multiply.

    Args:
        videos: the folder of the videos, named `video7` or `vid7` by their number, or one above it.
        annotations: the folder of `train_qa.json`, `val_qa.json` and `test_qa.json`.
        output: the table, a .jsonl file; `answers.txt` is written beside it, the most frequent first.
        answers: so many of the training split's, the most frequent ones: 1500 for MSRVTT-QA, 2423 for MSVD-QA.
        mapping: MSVD's `youtube_mapping.txt`, lines of a file's name and its `vid7`, where videos have their old names.

    Raises:
        FileNotFoundError: a file, or every video, is missing.
        ValueError: a file is not of that form, or output is no .jsonl file.
    """
    pairs = [line.split() for line in _lines(Path(mapping))] if mapping else []
    old = {number: name for name, number in pairs}
    files = _files(videos)
    asked = {split: _questions(Path(annotations) / f"{split}_qa.json") for split in ("train", "val", "test")}
    known = [name for name, _ in Counter(each["answer"] for each in asked["train"]).most_common(answers)]
    found, shares = [], []
    for split, questions in asked.items():
        kept = [each for each in questions if each["answer"] in set(known)]
        shares.append(f"{len(kept) / max(1, len(questions)):.4f} of {split}")
        for each in kept:
            names = [f"video{each['video_id']}", f"vid{each['video_id']}"]
            name = next((name for name in (*names, *(old.get(name, "") for name in names)) if name in files), names[0])
            found.append(Described(name, [f"{each['question'].rstrip('?')}?"], split, (each["answer"],)))
    _write(found, videos, output, "Video questions")
    listed = Path(output).with_name("answers.txt")
    write_atomically(listed, "".join(f"{name}\n" for name in known).encode())
    say(f"Answers: {listed}, {len(known)} of them, which answer {', '.join(shares)}.")


# Files ----------------------------------------------------------------------------------------------------------


def _json(path: str | Path, key: str | None = None) -> Iterable[Mapping[str, Any]]:
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    if key is not None:
        if not isinstance(content, dict) or key not in content:
            raise ValueError(f"{path} has no {key!r}: it is no annotation of MSR-VTT.")
        return content[key]
    if not isinstance(content, list):
        raise ValueError(f"{path} is no list of annotations.")
    return content


def _csv(path: str, columns: Iterable[str]) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        if missing := [column for column in columns if column not in (rows.fieldnames or ())]:
            raise ValueError(f"{path} has no column {missing[0]!r}; it has {', '.join(rows.fieldnames or ())}.")
        return list(rows)


def _questions(path: Path) -> list[Mapping[str, Any]]:
    found = list(_json(path))
    for number, each in enumerate(found):
        if missing := [key for key in ("question", "answer", "video_id") if key not in each]:
            raise ValueError(f"{path}: annotation {number} has no {missing[0]!r}: it is none of MSRVTT-QA or MSVD-QA.")
    return found


def _files(videos: str) -> dict[str, Path]:
    return {path.stem: path for path in sorted(Path(videos).rglob("*")) if path.suffix[1:].lower() in VIDEOS}


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _write(found: list[Described], videos: str, output: str, what: str) -> None:
    """The table of those that are there, and a word on it."""
    table = Path(output)
    if table.suffix != ".jsonl":
        raise ValueError(f"The table is a .jsonl file, not {output!r}.")
    files = _files(videos)
    here = [each for each in found if each.id in files]
    if not here:
        raise FileNotFoundError(f"None of the {len(found)} videos that {what} lists is in {videos}. Is it unpacked?")
    lines = []
    for each in here:
        file = Path(os.path.relpath(files[each.id], table.parent)).as_posix()
        row = {"file": file, "captions": each.captions, "split": each.split, "id": each.id}
        row |= {"labels": each.labels} if each.labels else {}
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    write_atomically(table, "".join(lines).encode())
    counts = ", ".join(f"{number} {split}" for split, number in Counter(each.split for each in here).items())
    missing = len(found) - len(here)
    say(f"{what}: {counts}: {table}" + (f"\nLeft out: {missing} videos that are not there." if missing else ""))
