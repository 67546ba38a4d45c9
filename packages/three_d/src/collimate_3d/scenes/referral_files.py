"""Files of sentences on ScanNet's objects: ScanRefer, Nr3D and Sr3D; and which words of a sentence name its target.

- ScanRefer: JSON, a list of {scene_id, object_id (a string), object_name (with underscores), ann_id, description, ...}.
- Nr3D, Sr3D: CSV with the columns scan_id, target_id, instance_type, utterance; Sr3D's anchor_ids and distractor_ids,
  and `mentions_target_class`, are read where they are there.
"""

from __future__ import annotations

import ast
import csv
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from collimate.data.referrals import NamedWord, Referral
from collimate_3d.scenes.reading import read_json

SCANREFER = ("scene_id", "object_id", "description")
REFERIT3D = ("scan_id", "target_id", "utterance")


def read_referrals(path: str | Path) -> list[tuple[str, Referral]]:
    """The scene and the sentence of each row.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is of neither form; says what it lacks.
    """
    path = Path(path)
    if path.suffix == ".json":
        return list(_scanrefer(path))
    if path.suffix == ".csv":
        return list(_referit3d(path))
    raise ValueError(f"{path} is neither ScanRefer's .json nor a .csv of Nr3D or Sr3D.")


def named_words(referral: Referral, labels: Mapping[int, str]) -> Referral:
    """The same with the words that name its target and anchors, where it has their labels, or plurals of these.

    Only the first mention of each is taken, as in 3D-VLP; an object that is called otherwise has none.

    Args:
        labels: id -> label.
    """
    words = list(referral.words)
    taken = {word.object for word in words}
    for number in (referral.target, *referral.anchors):
        label = labels.get(number, "").replace("_", " ").strip()
        found = re.search(rf"\b{re.escape(label)}(?:e?s)?\b", referral.text, re.IGNORECASE) if label else None
        free = found and not any(word.start < found.end() and found.start() < word.stop for word in words)
        if found and free and number not in taken:
            words.append(NamedWord(number, found.start(), found.end()))
    return replace(referral, words=tuple(words))


def _scanrefer(path: Path) -> Iterator[tuple[str, Referral]]:
    rows = read_json(path)
    if not isinstance(rows, list):
        raise ValueError(f"{path} is no list of ScanRefer's annotations.")
    for number, row in enumerate(rows):
        _has(path, number, row, SCANREFER)
        more = {name: row[name] for name in ("ann_id", "object_name") if name in row}
        yield row["scene_id"], Referral(row["description"].strip(), int(row["object_id"]), more=more)


def _referit3d(path: Path) -> Iterator[tuple[str, Referral]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        for number, row in enumerate(csv.DictReader(file)):
            _has(path, number, row, REFERIT3D)
            anchors = tuple(int(each) for each in _list(row.get("anchor_ids")))
            more: dict[str, Any] = (
                {"distractors": len(_list(row["distractor_ids"]))} if row.get("distractor_ids") else {}
            )
            more |= {name: row[name] for name in ("reference_type", "mentions_target_class") if row.get(name)}
            yield row["scan_id"], Referral(row["utterance"].strip(), int(row["target_id"]), anchors, more=more)


def _has(path: Path, number: int, row: Mapping[str, Any], names: tuple[str, ...]) -> None:
    if lacking := [name for name in names if row.get(name) in (None, "")]:
        raise ValueError(f"{path}, row {number}: there is no {lacking[0]!r}; it has {', '.join(map(str, row))}.")


def _list(value: str | None) -> list[Any]:
    """A cell that holds a list, as Python writes it."""
    return list(ast.literal_eval(value)) if value else []
