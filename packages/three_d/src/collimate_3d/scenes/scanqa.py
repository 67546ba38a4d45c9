"""ScanQA, questions on ScanNet's scenes: `scanqa:ScanQA_v1.0_val.json?scans=/data/scannet/scans`.

Azuma et al. 2022, arXiv 2112.10482: a JSON list of {scene_id, question_id, question, answers, object_ids, ...}; test
splits lack answers.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from collimate.data import Sample, Source
from collimate_3d.scenes.reading import read_json
from collimate_3d.scenes.scannet import ScanNetSource

NEEDED = ("scene_id", "question_id", "question")
SCENES_KEPT = 16  # in memory: questions on one scene stand together


class ScanQASource(Source):
    """Questions as samples: the scene's fields with the question as `txt`, and `labels.json`, its answers, if any.

    Args:
        questions: the file.
        scans: the folder of ScanNet's scenes.
        labels: as of `ScanNetSource`.

    Raises:
        FileNotFoundError: a file is missing, or every scene is.
        ValueError: the file is not of this form.
    """

    def __init__(self, questions: str, scans: str, labels: str | None = None) -> None:
        rows = read_json(Path(questions))
        if not isinstance(rows, list):
            raise ValueError(f"{questions} is no list of ScanQA's questions.")
        for number, row in enumerate(rows):
            if lacking := [name for name in NEEDED if name not in row]:
                raise ValueError(f"{questions}, row {number}: there is no {lacking[0]!r}; it has {', '.join(row)}.")
        self.scenes = ScanNetSource(scans, labels=labels, relations=False)
        places = {scene: number for number, scene in enumerate(self.scenes.scenes)}
        self.rows: list[tuple[int, dict[str, Any]]] = [
            (places[row["scene_id"]], row) for row in rows if row["scene_id"] in places
        ]
        self.missing = len(rows) - len(self.rows)
        if not self.rows:
            raise FileNotFoundError(f"{scans} holds the scene of none of the {len(rows)} questions of {questions}.")
        self.name = f"scanqa:{questions}"
        self._scene = lru_cache(SCENES_KEPT)(self.scenes.read)

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, index: int) -> Sample:
        place, row = self.rows[index]
        sample = {**self._scene(place), "__key__": row["question_id"], "__source__": self.name, "txt": row["question"]}
        return sample | ({"labels.json": list(row["answers"])} if row.get("answers") else {})

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_scene"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._scene = lru_cache(SCENES_KEPT)(self.scenes.read)
