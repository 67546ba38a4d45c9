"""Grounding: which object of a scene does a sentence mean?

Of each sentence the object of the best score is the answer. Where the objects are the annotated ones, it is right if it
is the target: the accuracy of Nr3D and Sr3D (Achlioptas et al. 2020, ReferIt3D). Where they are predicted, it is right
at k if its box overlaps the annotated one by k or more: Acc@0.25 and Acc@0.5 of ScanRefer (Chen et al. 2020, arXiv
1912.08830). Acc@k of annotated boxes would be the accuracy twice, and is refused.

Beside all sentences are reported, where there are any: `unique` and `multiple`, whose target is or is not the only
object of its class; `easy` and `hard`, with one or two, or more distractors; `by relation` and `by name`, whose words
for the target do or do not fit others too.

Shape legend: n sentences.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from collimate.data import EvalLoader, Source
from collimate.data.referrals import Referral, referrals_of
from collimate.evaluation.bootstrap import confidence_intervals, evaluate
from collimate.evaluation.features import Precision, autocast, evaluating, in_order, place, progress, settings_of
from collimate.evaluation.report import Report
from collimate.evaluation.result import Result
from collimate_3d.evaluation.pictures import grounding_picture, influences
from collimate_3d.graphs.geometry import box_overlap
from collimate_3d.scene_graph_vlp import SceneGraphVLP
from collimate_3d.scenes.processing import ReferralProcessor, checked_scene, unpacked_scenes

BoxSource = Literal["ground truth", "predicted"]
OVERLAPS = (0.25, 0.5)  # ScanRefer
EASY = 2  # distractors at most, of Nr3D's easy sentences
PICTURED = 6  # sentences of which the report has a picture
MOST_SENTENCES = 64  # of a scene that are read at a time


def evaluate_grounding(
    method: SceneGraphVLP,
    data: Source,
    boxes: BoxSource = "ground truth",
    batch_size: int = 16,
    num_workers: int = 0,
    device: str = "auto",
    precision: Precision = "float32",
    limit: int | None = None,
    resamples: int = 1000,
) -> GroundingResult:
    """Ground every sentence of every scene.

    Args:
        method: trained.
        data: samples with `scene.npz` and `referrals.json`.
        boxes: what the objects of the scenes are. With `predicted`, each sentence has the annotated box of its target
            in its field `box`, centre and extents; ids then mean nothing.
        batch_size: scenes at a time.
        num_workers: processes that read and decode.
        device: `auto` is the first GPU where there is one, else the CPU.
        precision: of the networks.
        limit: at most so many scenes, spread over the data.
        resamples: of the bootstrap intervals; scenes are drawn, with all their sentences.

    Raises:
        ValueError: there are no sentences, or one of predicted objects has no `box`.
    """
    scenes: Any = method.processors["scene"]
    told: Any = method.processors["referrals"]
    reader = ReferralProcessor(told.tokenizer, MOST_SENTENCES)
    where = place(method, device)
    loader = EvalLoader(data, {"scene": scenes}, batch_size, num_workers, ["scene.npz", "referrals.json"], limit=limit)
    answers: list[list[Answer]] = []
    index: list[int] = []
    with evaluating(method):
        for batch in progress(loader, f"Grounding {data.name}"):
            for row in batch["valid"].nonzero()[:, 0].tolist():
                sample = int(batch["index"][row])
                found = referrals_of(batch["referrals.json"][row])
                index.append(sample)
                with torch.inference_mode(), autocast(where, precision):
                    scores = _scores(method, batch["scene"][row : row + 1], found, reader)
                raw = checked_scene(batch["scene.npz"][row])
                seen = unpacked_scenes(batch["scene"][row : row + 1])
                answers.append(_answers(sample, found, scores, raw, seen, boxes))
    every = [answer for each in in_order(answers, torch.tensor(index, dtype=torch.int64)) for answer in each]
    if not every:
        raise ValueError(f"{data.name}: no scene has a sentence.")
    statistic = _statistic(every)
    metrics = evaluate(statistic, len(every))
    groups = torch.tensor([answer.sample for answer in every])
    intervals = confidence_intervals(statistic, len(every), groups, resamples=resamples)
    protocol = {
        **settings_of(method, ["scene", "referrals"], data, len(set(groups.tolist())), limit, precision),
        "sentences": len(every),
        "without a target among the objects": sum(not answer.has_target for answer in every),
        "boxes": boxes,
        "chance": round(float(np.mean([1 / answer.objects for answer in every])), 4),
        "intervals": f"95 %, {resamples} bootstrap resamples of scenes with their sentences",
    }
    return GroundingResult("Grounding", metrics, intervals, protocol, every, data, method)


@dataclass(frozen=True)
class Answer:
    """A sentence, and what was taken for its target.

    Attributes:
        sample: the scene's place in the source.
        referral: the sentence.
        objects: how many there were to choose from.
        has_target: whether the target is among them; by overlap, whether any reaches the least one.
        right: by what counts as right (`accuracy`, or `acc@0.25` and `acc@0.5`) of the matching head's answer; with
            `cosine ` before it, of the nearest object's.
        distractors: other objects of the target's class; None where the target is none of the objects.
        chosen: the id of the answer.
    """

    sample: int
    referral: Referral
    objects: int
    has_target: bool
    right: dict[str, bool]
    distractors: int | None
    chosen: int


@dataclass
class GroundingResult(Result):
    """Accuracies by kind of sentence, and pictures of answers."""

    answers: Sequence[Answer]
    data: Source
    method: SceneGraphVLP

    def add_to(self, report: Report) -> None:
        super().add_to(report)
        lines = "lines lead to what the answer rests on"
        report.add_images(self._pictures(True), f"Found: the answer in green; {lines}", "good wide")
        report.add_images(self._pictures(False), f"Missed: the answer in red, the target in green; {lines}", "bad wide")

    def _pictures(self, right: bool) -> list[tuple[Any, str]]:
        """One of each scene, those that need a relation first."""
        fitting = [each for each in self.answers if next(iter(each.right.values())) == right]
        fitting.sort(key=lambda each: not each.referral.needs_relation)
        by_scene = {each.sample: each for each in reversed(fitting)}
        chosen = sorted(by_scene.values(), key=lambda each: not each.referral.needs_relation)[: PICTURED // 2]
        return [self._picture(each) for each in chosen]

    def _picture(self, answer: Answer) -> tuple[Any, str]:
        raw = checked_scene(self.data.read(answer.sample)["scene.npz"])
        scenes: Any = self.method.processors["scene"]
        told: Any = self.method.processors["referrals"]
        with evaluating(self.method):
            rests_on = influences(
                self.method, scenes(raw), ReferralProcessor(told.tokenizer, 1)([answer.referral]), answer.chosen
            )
        picture = grounding_picture(raw, answer.chosen, answer.referral.target, rests_on)
        return picture, answer.referral.text


def annotated_box(referral: Referral) -> Float[Tensor, "1 6"]:
    """Where a sentence's target was annotated: centre and full extents.

    Raises:
        ValueError: the sentence does not say.
    """
    if "box" not in referral.more:
        raise ValueError(
            f"{referral.text!r} has no `box`: among predicted objects, a sentence says where its target was annotated."
        )
    return torch.tensor([referral.more["box"]], dtype=torch.float32)


def accuracy_at(
    overlaps: Float[Tensor, " n"], boxes: BoxSource, least: Sequence[float] = OVERLAPS
) -> dict[str, Float[Tensor, " n"]]:
    """Acc@k: whether the overlap of each answer with the annotated box is k or more.

    Args:
        overlaps: of answers and annotated boxes; 0 for a sentence without an answer.
        boxes: where the answers' boxes come from.

    Raises:
        ValueError: they are the annotated boxes themselves, of which every k gives the same number.
    """
    if boxes == "ground truth":
        raise ValueError(
            "Acc@k says how well predicted boxes lie; these are annotated ones, so that every k gives the same number. "
            "Report `accuracy`, or ground among predicted objects."
        )
    return {f"acc@{k:g}": overlaps >= k for k in least}


# One scene ------------------------------------------------------------------------------------------------------


def _scores(
    method: SceneGraphVLP, scene: Tensor, found: Sequence[Referral], reader: ReferralProcessor
) -> tuple[Float[Tensor, "n M"], Float[Tensor, "n M"]]:
    parts = [
        method.ground(scene, reader(list(found[first : first + MOST_SENTENCES]))[None])
        for first in range(0, max(1, len(found)), MOST_SENTENCES)
    ]
    matching, cosine = (torch.cat([part[which][0].float().cpu() for part in parts])[: len(found)] for which in (0, 1))
    return matching, cosine


def _answers(
    sample: int, found: Sequence[Referral], scores: tuple[Tensor, Tensor], raw: Any, seen: Any, boxes: BoxSource
) -> list[Answer]:
    ids, objects = seen.ids[0], int(seen.given.sum())
    counts = Counter(raw["labels"].tolist())
    labels = dict(zip(raw["ids"].tolist(), raw["labels"].tolist(), strict=True))
    answers = []
    for number, referral in enumerate(found):
        chosen = {"": int(scores[0][number].argmax()), "cosine ": int(scores[1][number].argmax())} if objects else {}
        right: dict[str, bool] = {}
        for kind in ("", "cosine "):
            if boxes == "ground truth":
                right[f"{kind}accuracy"] = bool(chosen) and int(ids[chosen[kind]]) == referral.target
            else:
                overlap = _overlap(referral, seen, chosen.get(kind))
                right |= {f"{kind}{name}": bool(each) for name, each in accuracy_at(overlap, boxes).items()}
        target = referral.target in labels and boxes == "ground truth"
        distractors = counts[labels[referral.target]] - 1 if target else referral.more.get("distractors")
        answers.append(
            Answer(
                sample,
                referral,
                max(1, objects),
                bool((ids == referral.target).any()) if boxes == "ground truth" else _reached(referral, seen),
                right,
                distractors,
                int(ids[chosen[""]]) if chosen else -1,
            )
        )
    return answers


def _overlap(referral: Referral, seen: Any, row: int | None) -> Float[Tensor, " 1"]:
    annotated = annotated_box(referral)
    return torch.zeros(1) if row is None else box_overlap(seen.boxes[0, row : row + 1], annotated)


def _reached(referral: Referral, seen: Any) -> bool:
    """Whether any object's box overlaps the annotated one by the least k."""
    boxes = seen.boxes[0][seen.given[0]]
    return bool((box_overlap(boxes, annotated_box(referral).expand(len(boxes), -1)) >= OVERLAPS[0]).any())


def _statistic(answers: Sequence[Answer]) -> Any:
    """The share of right answers, of all sentences and of each kind, as a function of weights."""
    kinds = {
        "": [True] * len(answers),
        " unique": [each.distractors == 0 for each in answers],
        " multiple": [bool(each.distractors) for each in answers],
        " easy": [each.distractors in range(1, EASY + 1) for each in answers],
        " hard": [(each.distractors or 0) > EASY for each in answers],
        " by relation": [each.referral.needs_relation is True for each in answers],
        " by name": [each.referral.needs_relation is False for each in answers],
    }
    chosen = {kind: torch.tensor(which, dtype=torch.float32) for kind, which in kinds.items() if any(which)}
    right = {name: torch.tensor([each.right[name] for each in answers]).float() for name in answers[0].right}

    def statistic(weights: Float[Tensor, "R n"]) -> dict[str, Float[Tensor, " R"]]:
        return {
            f"{name}{kind}": (weights * which) @ hits / (weights @ which)
            for name, hits in right.items()
            for kind, which in chosen.items()
        }

    return statistic
