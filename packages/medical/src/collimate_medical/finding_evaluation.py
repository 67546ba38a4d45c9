"""Findings by their texts, judged: which films, or which ECGs, have them, without training for it.

Scores are those of `collimate_medical.zero_shot`: of presence where a finding's texts have a denial, of the best text
where they have none. They rank samples, so that areas under the ROC curve are reported, of each finding and their mean
over the findings of which the data have both kinds, with intervals by patient. The published figures of different
methods were taken by different protocols: compare what this evaluation says of two models, not with papers.

Shape legend: N samples, C findings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Unpack

import torch
from jaxtyping import Float
from torch import Tensor

from collimate.data import Source
from collimate.encoding import Encoding
from collimate.evaluation.features import (
    Features,
    Precision,
    encode_all,
    exhibit_of,
    extract,
    is_cosine,
    other_modality,
)
from collimate.evaluation.label_result import LabelsResult, judge_labels
from collimate.evaluation.modalities import Exhibit
from collimate.evaluation.options import Reading
from collimate.evaluation.report import Report
from collimate.evaluation.zero_shot import class_scores
from collimate.training import Method
from collimate_medical.findings import findings_of, keys_of, patients_of
from collimate_medical.label_policies import Blank, Policy, label_targets
from collimate_medical.prompts import FindingTexts, read_prompts
from collimate_medical.zero_shot import presence

SETS = {"xray": "chexpert", "ecg": "ptb-xl"}
"""What is asked of a modality unless something else is."""


def evaluate_findings(
    method: Method,
    data: Source,
    findings: str | Sequence[str] | Mapping[str, object] | None = None,
    modality: str | None = None,
    uncertain: Policy = "ignore",
    blank: Blank = "zeros",
    batch_size: int = 64,
    num_workers: int = 0,
    device: str = "auto",
    precision: Precision = "float32",
    limit: int | None = None,
    resamples: int = 1000,
) -> FindingsResult:
    """AUROC and average precision of findings that are asked for by texts.

    Args:
        method: encodes text and the modality; scores are of its own similarity, as GLoRIA's of words and regions.
        data: samples that say their findings; see `collimate_medical.findings`. Those that lack the modality are left
            out and counted.
        findings: see `collimate_medical.prompts.read_prompts`; the set of `SETS` unless given.
        modality: what is looked at; the method's first that is not text unless given.
        uncertain, blank: what becomes of uncertain findings, and of those that are not mentioned; see
            `collimate_medical.label_policies`.
        batch_size: of each rank.
        num_workers: processes that read and decode.
        device: `auto` is the first GPU where there is one, else the CPU.
        precision: of the encoders.
        limit: at most so many samples, spread over the data.
        resamples: of the intervals, which draw patients.

    Raises:
        ValueError: samples say nothing of findings, or none of them has one of these.
    """
    modality = modality or other_modality(method)
    texts = read_prompts(findings or SETS.get(modality, "chexpert"))
    keys = keys_of(data)
    if keys.findings is None:
        raise ValueError(f"{data.name}: samples say nothing of findings: `labels.json`, or `findings` in `json`.")
    tokens = not is_cosine(method)
    features = extract(
        method, data, [modality], keys.all, tokens, batch_size, num_workers, device, precision, limit
    )  # fmt: skip
    known = list(getattr(data, "class_names", None) or texts)
    said = findings_of(features.extras[keys.findings], known)
    if not any(each.get(name) == 1 for each in said for name in texts):
        spoken = sorted({name for each in said for name, value in each.items() if value == 1})
        raise ValueError(f"{data.name}: no sample has {', '.join(texts)}; there are {', '.join(spoken) or 'none'}.")
    labels = label_targets(said, list(texts), uncertain, blank)
    protocol = {
        **features.settings,
        "modality": modality,
        "prompts": _described(texts),
        "score": f"{type(method).__name__}.similarity" if tokens else "cosine",
        "uncertain": uncertain,
        "blank": blank,
    }
    scores = _scores(method, features.encodings[modality], texts, device, precision)
    patients = None if keys.patients is None else patients_of(features.extras, keys.patients, len(features))
    found = judge_labels("Zero-shot findings", scores, labels, list(texts), protocol, patients, resamples)
    return FindingsResult(**vars(found), features=features, modality=modality)


@dataclass
class FindingsResult(LabelsResult):
    """The same with what was looked at, for pictures in the report."""

    features: Features = field(kw_only=True)
    modality: str = field(kw_only=True)

    def __post_init__(self) -> None:
        pass  # the numbers come judged

    def add_to(self, report: Report) -> None:
        super().add_to(report)
        report.add_examples(*self.examples())

    def examples(self) -> tuple[list[tuple[Exhibit, str]], list[tuple[Exhibit, str]]]:
        """For each finding the sample in which it seems likeliest: those that have it, and those that have not."""
        parts: tuple[list[Any], list[Any]] = ([], [])
        for name, scores, labels in zip(self.names, self.scores.T, self.labels.T, strict=True):
            for part, wanted in zip(parts, (1, 0), strict=True):
                rows = (labels == wanted).nonzero().flatten()
                if not len(rows):
                    continue
                row = int(rows[scores[rows].argmax()])
                if (exhibit := exhibit_of(self.features, row, self.modality)) is not None:
                    part.append((exhibit, f"{name}: {scores[row]:.2f}; true: {self._true(row)}"))
        return parts

    def _true(self, row: int) -> str:
        return ", ".join(name for name, there in zip(self.names, self.labels[row] == 1, strict=True) if there) or "none"


def _scores(
    method: Method, samples: Encoding, texts: Mapping[str, FindingTexts], device: str, precision: Precision
) -> Float[Tensor, "N C"]:
    """The score of each finding, those with a denial by presence, the others by their best text."""
    flat = [text for several in texts.values() for side in several for text in side]
    encoded = encode_all(method, "text", flat, not is_cosine(method), device=device, precision=precision)
    similarities = class_scores(method, samples, encoded, range(len(flat)), len(flat))  # each text a class of its own
    columns, first = [], 0
    for several in texts.values():
        middle, last = first + len(several.present), first + len(several.present) + len(several.absent)
        present, absent = similarities[:, first:middle], similarities[:, middle:last]
        columns.append(presence(present, absent) if several.absent else present.amax(1))
        first = last
    return torch.stack(columns, 1)


def _described(texts: Mapping[str, FindingTexts]) -> str:
    first = next(iter(texts.values()))
    against = f" against {first.absent[0]!r}" if first.absent else ", the best of each"
    return f"{sum(len(each.present) for each in texts.values())}, such as {first.present[0]!r}{against}"


def zero_shot(
    checkpoint: str,
    data: str,
    findings: str | list[str] | None = None,
    output: str = "runs/zero_shot",
    modality: str | None = None,
    uncertain: Literal["ignore", "zeros", "ones"] = "ignore",
    blank: Literal["zeros", "ignore"] = "zeros",
    limit: int | None = None,
    resamples: int = 1000,
    **options: Unpack[Reading],
) -> None:
    """Tell findings of X-rays or of ECGs by texts, without training; areas under the curve with intervals by patient.

    Args:
        checkpoint: a model folder, or a .ckpt of a training run.
        data: samples with findings: a table that an `import-` verb wrote, shards, `world-patients:test`, ...
        findings: a set of texts: `chexpert` (5), `mimic` (14), `ptb-xl` (5 super-classes of ECGs), `world-xray`,
            `world-ecg`; a JSON or YAML file of label -> texts; or names of findings. By default `chexpert` for X-rays,
            `ptb-xl` for ECGs.
        output: the folder of report.html and report.json.
        modality: `xray` or `ecg`; the model's first that is not text unless given. What lacks it is left out.
        uncertain: uncertain findings (-1) are left out (`ignore`), absent or present.
        blank: findings that are not mentioned are absent (`zeros`) or not known (`ignore`).
        limit: at most so many samples, spread over the data.
        resamples: of the intervals, which draw patients.
    """
    from collimate.data import open_source
    from collimate.evaluation.commands import load_method, publish

    found = evaluate_findings(
        load_method(checkpoint),
        open_source(data),
        findings,
        modality,
        uncertain,
        blank,
        limit=limit,
        resamples=resamples,
        **options,
    )
    publish(found, checkpoint, output)
