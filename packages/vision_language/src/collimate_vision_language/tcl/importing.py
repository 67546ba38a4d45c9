"""Public data sets of questions and statements about pictures, as their authors lay them out.

VQA v2 (Goyal et al. 2017, arXiv 1612.00837) becomes a table with a row a question, for `TCLAnswers`; NLVR2 (Suhr et al.
2019, arXiv 1811.00491) becomes shards, because a sample has two pictures, for `TCLPairs`. What has a picture that is
not there is left out and counted.
"""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from collimate.console import say
from collimate.data import Sample, Source
from collimate.data.commands import write_shards
from collimate.data.files import write_atomically

HOLDS = ("does not hold", "holds")
"""The classes of a statement, in the order of their numbers."""


def import_vqa(
    images: str, questions: list[str], annotations: list[str], output: str, answers: int | str = 3128
) -> None:
    """Write the table of VQA v2, a row a question, and the list of answers beside it.

    A row has all annotators' answers that are on the list as its labels. Training questions without such an answer are
    left out; others stay and count as wrong, as they do in the published accuracy.

    Args:
        images: the folder of COCO's pictures, or one above it.
        questions: files such as `v2_OpenEnded_mscoco_train2014_questions.json`; a row's `split` is the `train` or
            `val` in its name.
        annotations: files such as `v2_mscoco_train2014_annotations.json`, in the same order.
        output: the table, a .jsonl file; `answers.txt` is written beside it.
        answers: so many, the most frequent ones of the training split; or a file with one a line, such as a released
            list.

    Raises:
        FileNotFoundError: a file, or every picture, is missing.
        ValueError: a file is not of that form, there is no training split to take answers from, or output is no .jsonl
            file.
    """
    if len(questions) != len(annotations):
        raise ValueError(f"{len(questions)} files of questions, {len(annotations)} of annotations: give one for each.")
    if not output.endswith(".jsonl"):
        raise ValueError(f"The table is a .jsonl file, not {output!r}.")
    asked = [row for pair in zip(questions, annotations, strict=True) for row in _asked(*pair)]
    known = _answer_list(answers, asked)
    pictures, table = _pictures(images), Path(output)
    rows, left_out = [], Counter[str]()
    for each in asked:
        path = pictures.get(each["image"])
        labels = [answer for answer in each["answers"] if answer in known]
        if path is None or (each["split"] == "train" and not labels):
            left_out["picture not there" if path is None else "training question whose answers are not listed"] += 1
            continue
        file = Path(os.path.relpath(path, table.parent)).as_posix()
        rows.append(
            {"file": file, "text": each["question"], "labels": labels, "split": each["split"], "id": each["id"]}
        )
    if not rows:
        raise FileNotFoundError(f"None of the pictures that {questions[0]} asks about is in {images}.")
    table.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(table, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
    write_atomically(table.with_name("answers.txt"), "".join(f"{answer}\n" for answer in known).encode())
    counts = ", ".join(f"{number} {split}" for split, number in Counter(row["split"] for row in rows).items())
    say(f"VQA: {counts}: {table}, and {len(known)} answers beside it.")
    _tell(left_out)


def import_nlvr(images: str, annotations: str, output: str) -> None:
    """Write a split of NLVR2 as shards: the pictures `left` and `right`, the statement, and whether it holds.

    Args:
        images: the folder of the pictures, `<identifier>-img0.png` the left and `-img1.png` the right one, or one above
            it.
        annotations: `train.json`, `dev.json` or `test1.json`, an object a line.
        output: the folder of the shards.

    Raises:
        FileNotFoundError: the file, or every pair of pictures, is missing.
        ValueError: the file is not of that form.
    """
    found, left_out = [], Counter[str]()
    pictures = _pictures(images)
    for number, line in enumerate(Path(annotations).read_text(encoding="utf-8").splitlines(), 1):
        each = _object(line, ("identifier", "sentence", "label"), f"{annotations}: line {number}")
        of_pair = each["identifier"].rsplit("-", 1)[0]
        sides = [pictures.get(f"{of_pair}-img{side}.png") for side in range(2)]
        if None in sides:
            left_out["pair of pictures that is not there"] += 1
            continue
        found.append((each["identifier"], each["sentence"], str(each["label"]).lower() == "true", sides))
    if not found:
        raise FileNotFoundError(f"None of the pairs that {annotations} lists is in {images}. Are they unpacked?")
    write_shards(Statements(found), output, {"nlvr": Path(annotations).name})
    _tell(left_out)


class Statements(Source):
    """Statements about two pictures.

    Args:
        found: of each its name, its text, whether it holds, and the files of the left and the right picture.
    """

    name = "nlvr"

    def __init__(self, found: list[tuple[str, str, bool, list[Any]]]) -> None:
        self.found, self.class_names = found, list(HOLDS)

    def __len__(self) -> int:
        return len(self.found)

    def read(self, index: int) -> Sample:
        name, text, holds, (left, right) = self.found[index]
        pictures = {"left.png": left.read_bytes(), "right.png": right.read_bytes()}
        return {"__key__": name, "__source__": self.name, **pictures, "txt": text, "cls": int(holds)}


# Files ----------------------------------------------------------------------------------------------------------


def _asked(questions: str, annotations: str) -> Iterable[dict[str, Any]]:
    """The questions of a split with what all annotators answered."""
    split = next((part for part in ("train", "val") if part in Path(questions).name), None)
    if split is None:
        raise ValueError(f"{questions}: expected `train` or `val` in the name of a file of questions.")
    told: dict[Any, list[str]] = defaultdict(list)
    for each in _listed(annotations, "annotations", ("question_id", "answers")):
        told[each["question_id"]] = [answer["answer"].strip().lower() for answer in each["answers"]]
    for each in _listed(questions, "questions", ("question_id", "question", "image_id")):
        if each["question_id"] not in told:
            raise ValueError(f"{annotations} has no answers to the question {each['question_id']} of {questions}.")
        yield {
            "image": f"COCO_{split}2014_{each['image_id']:012d}.jpg",
            "question": each["question"],
            "answers": told[each["question_id"]],
            "split": split,
            "id": str(each["question_id"]),
        }


def _answer_list(answers: int | str, asked: list[dict[str, Any]]) -> dict[str, None]:
    """The answers, in their order; the most frequent ones, counted by each training question's commonest."""
    if isinstance(answers, str):
        return dict.fromkeys(line.strip() for line in Path(answers).read_text(encoding="utf-8").splitlines() if line)
    first = [Counter(each["answers"]).most_common(1)[0][0] for each in asked if each["split"] == "train"]
    if not first:
        raise ValueError("There is no training split to take answers from: give a file of answers.")
    return dict.fromkeys(answer for answer, _ in Counter(first).most_common(answers))


def _listed(path: str, key: str, wanted: tuple[str, ...]) -> Iterable[Mapping[str, Any]]:
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    if not isinstance(content, dict) or key not in content:
        raise ValueError(f"{path} has no {key!r}: it is no file of VQA v2.")
    for number, each in enumerate(content[key]):
        if missing := [name for name in wanted if name not in each]:
            raise ValueError(f"{path}: {key} {number} has no {missing[0]!r}: it is no file of VQA v2.")
        yield each


def _object(line: str, wanted: tuple[str, ...], where: str) -> Mapping[str, Any]:
    try:
        content = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where}: no JSON ({error}); expected an object of NLVR2 a line.") from None
    if missing := [name for name in wanted if name not in content]:
        raise ValueError(f"{where} has no {missing[0]!r}: it is no file of NLVR2.")
    return content


def _pictures(folder: str) -> dict[str, Path]:
    return {path.name: path for path in sorted(Path(folder).rglob("*")) if path.is_file()}


def _tell(left_out: Counter[str]) -> None:
    for reason, count in sorted(left_out.items()):
        say(f"Left out: {count} x {reason}.")
