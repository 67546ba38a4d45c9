"""What the importers of medical data sets share: reading their tables, and writing ours.

A row says only what is in `COLUMNS`; age, sex, devices, staff, places and identifiers of the originals stay behind.
Patients and studies are told apart by numbers that are made of the original identifiers and do not tell them; the paths
of files are the publisher's own.
"""

from __future__ import annotations

import csv
import gzip
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from collimate.console import say
from collimate.data.files import write_atomically
from collimate_medical.pairing import check_patients

COLUMNS = ("file", "split", "patient", "study", "when", "view", "captions", "findings", "labels", "severity")
"""All that a table may hold: path, part of the data, whose, of which study, date and time where the publisher shifted
them, how it was taken, the report, label -> 1, 0 or -1, the labels that are present, and a grade from 0."""

PARTS = ("train", "val", "test")
SHARES = (0.8, 0.1)  # ours, of train and val, where a data set has no split of its own
MAX_FIELD = 2**24  # bytes of a cell


def read_table(path: Path, columns: Sequence[str]) -> Iterator[dict[str, str]]:
    """The rows of a .csv file or of the .csv.gz beside it, with these columns alone.

    Raises:
        FileNotFoundError: there is neither.
        ValueError: a column is missing, or a row has other cells than the header.
    """
    packed = path.with_name(f"{path.name}.gz")
    if not path.is_file() and not packed.is_file():
        raise FileNotFoundError(
            f"There is no {path.name} (or {packed.name}) in {path.parent}: name the folder of the data set's tables."
        )
    csv.field_size_limit(MAX_FIELD)
    opener, found = (open, path) if path.is_file() else (gzip.open, packed)
    with opener(found, "rt", encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file)
        header = next(rows, [])
        if missing := [column for column in columns if column not in header]:
            raise ValueError(f"{path.name} has no column {missing[0]!r}; it has {', '.join(header[:30])}.")
        places = [(column, header.index(column)) for column in columns]
        for cells in rows:
            if len(cells) < len(header):
                raise ValueError(f"{path.name}: line {rows.line_num}: {len(cells)} cells for {len(header)} columns.")
            yield {column: cells[place] for column, place in places}


def pseudonym(*identifiers: str) -> int:
    """A number for an identifier, the same in every table, which fits into int64 and into JSON's numbers."""
    return int.from_bytes(blake2b("/".join(identifiers).encode(), digest_size=6).digest(), "little")


def part_of(patient: int, shares: Sequence[float] = SHARES) -> str:
    """The part of the data that a patient falls into, by a number made of their own: the same in every table.

    Args:
        patient: see `pseudonym`.
        shares: of train and val; the rest is test.
    """
    place = pseudonym("part", str(patient)) / 2**48
    return PARTS[sum(place >= bound for bound in (shares[0], sum(shares)))]


def finding_value(text: str, path: Path, column: str) -> int | None:
    """A label's cell: 1, 0, -1, or nothing.

    Raises:
        ValueError: it is something else.
    """
    if not text.strip():
        return None
    try:
        value = float(text)
    except ValueError:
        value = 2.0
    if value not in (1.0, 0.0, -1.0):
        raise ValueError(
            f"{path.name}: column {column!r}: {text!r}, where 1, 0, -1 or nothing is expected: mend the cell."
        )
    return int(value)


def present(findings: dict[str, int]) -> list[str]:
    """The labels of findings that are present."""
    return [label for label, value in findings.items() if value == 1]


def write_rows(rows: Iterable[dict[str, Any]], output: str, what: str, left_out: Counter[str] | None = None) -> None:
    """Write those rows whose `file` is there, and say how many.

    Args:
        rows: with an absolute or relative `file`, a path, and any of `COLUMNS`.
        output: the table, a .jsonl file; `file` becomes relative to it.
        what: the data set's name.
        left_out: reason -> rows that were left out already.

    Raises:
        ValueError: output is no .jsonl file, or a patient is in two parts.
        FileNotFoundError: no file is there.
    """
    table, left_out = Path(output), left_out if left_out is not None else Counter()
    if table.suffix != ".jsonl":
        raise ValueError(f"The table is a .jsonl file, not {output!r}.")
    patients: defaultdict[str, set[int]] = defaultdict(set)
    lines, counts, example = [], Counter[str](), ""
    for row in rows:
        path = Path(row["file"])
        if not path.is_file():
            left_out["file not there"] += 1
            example = example or str(path)
            continue
        assert row.keys() <= set(COLUMNS)
        named = {**row, "file": Path(os.path.relpath(path, table.parent)).as_posix()}
        lines.append(json.dumps(named, ensure_ascii=False) + "\n")
        counts[row["split"]] += 1
        patients[row["split"]].add(row["patient"])
    if not lines:
        hint = f" {example} is the first of {left_out['file not there']}: is it unpacked?" if example else ""
        reasons = ", ".join(f"{count} x {reason}" for reason, count in left_out.items())
        raise FileNotFoundError(f"{what}: no file to list.{hint} Left out: {reasons or 'nothing'}.")
    check_patients(patients)
    write_atomically(table, "".join(lines).encode())
    parts = ", ".join(f"{counts[part]} {part} ({len(patients[part])} patients)" for part in PARTS if counts[part])
    say(f"{what}: {parts}: {table}" + "".join(f"\nLeft out: {count} x {why}." for why, count in left_out.items()))
