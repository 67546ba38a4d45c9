"""Frozen encoders on findings: probes on ever fewer labelled patients, and on grades of severity.

Beside the encoder stand the same one with random weights, which is a strong one for ECGs (arXiv 2602.17531), and the
same one taught the labels from the start. All patients of a share, of a split and of a resample come whole.

Shape legend: N training samples, M test samples, C findings, K grades.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Unpack

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from collimate.data import Source
from collimate.encoders import Encoder
from collimate.evaluation.bootstrap import confidence_intervals, evaluate
from collimate.evaluation.features import Features, Model, encoder_of, extract, modality_of, other_modality
from collimate.evaluation.label_probes import (
    SharesResult,
    judge_shares,
    label_probe,
    percent,
    rows_of_share,
)
from collimate.evaluation.options import Reading
from collimate.evaluation.ordinal import ordinal_statistic
from collimate.evaluation.probes import PENALTIES, LinearProbe, randomized
from collimate.evaluation.result import Result
from collimate.evaluation.supervised import supervised_scores
from collimate.training import Method
from collimate_medical.findings import findings_of, keys_of, names_in, patients_of
from collimate_medical.having import Having
from collimate_medical.label_policies import Blank, Policy, check_targets, label_targets
from collimate_medical.pairing import check_patients

SHARES = (0.01, 0.1, 1.0)  # GLoRIA, ConVIRT: of the labels
SUPERVISED_STEPS = 300  # ours
SEVERITY_PENALTY = float(PENALTIES[64])  # ours: about 0.005, where there is no validation set


def evaluate_shares(
    model: Model,
    train: Source,
    test: Source,
    findings: Sequence[str] | None = None,
    shares: Sequence[float] = SHARES,
    uncertain: Policy | Mapping[str, Policy] = "ignore",
    blank: Blank = "zeros",
    modality: str | None = None,
    random_encoder: bool = True,
    supervised_steps: int = SUPERVISED_STEPS,
    limit: int | None = None,
    resamples: int = 1000,
    seed: int = 0,
    **options: Unpack[Reading],
) -> SharesResult:
    """Areas of linear probes on shares of the labelled patients.

    Args:
        model: an encoder, or a method, of which the modality's encoder is taken.
        train: samples with findings (`collimate_medical.findings`). Those that lack the modality are left out and
            counted, here and in `test`.
        test: others, of other patients. What is uncertain there is left out, whatever the policy.
        findings: which labels; all that both speak of unless given.
        shares: of the training patients, the smaller ones inside the larger.
        uncertain: what becomes of uncertain findings in training.
        blank: what becomes of findings that are not mentioned, in both.
        modality: which encoder of a method; the first that is not text unless given.
        random_encoder: probe the same encoder with random weights too.
        supervised_steps: of an encoder of the same kind that is taught the labels of each share from random weights;
            0 for none.
        limit: at most so many samples of each, spread over the data.
        resamples: of the bootstrap intervals.
        seed: of shares, splits and random weights.
        options: batch_size, num_workers, device, precision; as for `collimate.evaluation.extract`.

    Returns:
        `auroc@1%`, `average_precision@1%`, `random/auroc@1%`, `supervised/auroc@1%`, `above random/auroc@1%` and so on.

    Raises:
        ValueError: no sample has the modality, samples say nothing of findings, a finding is known of no training
            sample or the same in all, a policy leaves classes that a probe cannot take, or a patient is in both sets.
    """
    if "multiclass" in (uncertain if isinstance(uncertain, Mapping) else {"": uncertain}).values():
        raise ValueError("A probe of two classes cannot take the policy multiclass: choose another.")
    modality, encoder = _probed(model, modality)
    train, test = Having(train, modality), Having(test, modality)
    fitted, said, groups = _read(encoder, train, modality, limit, **options)
    tested, test_said, test_groups = _read(encoder, test, modality, limit, **options)
    _check_apart(fitted, tested, train, test)
    names = list(findings or _common(names_in(said, train), names_in(test_said, test)))
    labels = label_targets(said, names, uncertain, blank, seed=seed)
    test_labels = label_targets(test_said, names, "ignore", blank)
    check_targets(labels, names)
    encoders = {"": encoder} | ({"random": randomized(encoder, seed)} if random_encoder else {})
    pairs = {
        row: (fitted, tested)
        if not row
        else tuple(_features(each, source, modality, limit, **options) for source in (train, test))
        for row, each in encoders.items()
    }
    scores: dict[float, dict[str, Tensor]] = {}
    notes: dict[str, Any] = {}
    for share in shares:
        rows = rows_of_share(groups, share, seed)
        scores[share] = {}
        for row, (one, other) in pairs.items():
            features, test_features = (each.encodings[modality].pooled for each in (one, other))
            found = label_probe(features[rows], _hard(labels[rows]), test_features, groups[rows], seed=seed)
            scores[share][row] = found.scores
            if not row:
                notes[f"at {percent(share)}"] = _share_note(groups[rows], found.fitted, names)
        if supervised_steps:
            places = fitted.index[rows]
            scores[share]["supervised"] = supervised_scores(
                encoder,
                train,
                places,
                labels[rows],
                test,
                modality,
                supervised_steps,
                limit=limit,
                seed=seed,
                **options,
            )
    protocol = {
        **tested.settings,
        "train data": f"{train.name}, {len(groups)} samples of {len(groups.unique())} patients",
        **_lacking(modality, train, test),
        "findings": ", ".join(names),
        "uncertain": f"{uncertain} in training, left out in testing",
        "blank": blank,
        **notes,
        **({"supervised": f"{supervised_steps} steps from random weights"} if supervised_steps else {}),
    }
    return judge_shares("Probes by share of the labels", scores, test_labels, test_groups, protocol, resamples)


def evaluate_severity(
    model: Model,
    train: Source,
    test: Source,
    column: str = "severity",
    modality: str | None = None,
    random_encoder: bool = True,
    limit: int | None = None,
    resamples: int = 1000,
    seed: int = 0,
    **options: Unpack[Reading],
) -> Result:
    """How well grades, such as an edema's from 0 to 3, are read from a frozen encoder by multinomial regression.

    Args:
        model: an encoder, or a method, of which the modality's encoder is taken.
        train: samples whose `json` has the grade; those without it, or without the modality, are left out.
        test: others, of other patients.
        column: where the grade stands, a whole number from 0.
        modality, random_encoder, limit, resamples, seed, options: as for `evaluate_shares`.

    Returns:
        of `collimate.evaluation.ordinal.ordinal_statistic`, and the same of `random/`.

    Raises:
        ValueError: a grade is no whole number from 0, there are fewer than two, or a patient is in both sets.
    """
    modality, encoder = _probed(model, modality)
    train, test = Having(train, modality), Having(test, modality)
    patients = keys_of(test).patients
    also = ["json"] if patients in (None, "json") else ["json", patients]
    metrics: dict[str, float] = {}
    intervals: dict[str, tuple[float, float]] = {}
    protocol: dict[str, Any] = {}
    for row, each in {"": encoder, **({"random/": randomized(encoder, seed)} if random_encoder else {})}.items():
        fitted, tested = (
            extract(each, source, [modality], also, False, limit=limit, **options) for source in (train, test)
        )
        if not row:
            _check_apart(fitted, tested, train, test)
        (rows, grades), (test_rows, test_grades) = (_grades(found, column) for found in (fitted, tested))
        count = int(grades.max()) + 1
        probe = LinearProbe.fit(fitted.encodings[modality].pooled[rows], grades, count, SEVERITY_PENALTY)
        statistic = ordinal_statistic(probe.scores(tested.encodings[modality].pooled[test_rows]), test_grades)
        groups = patients_of(tested.extras, patients, len(tested))[test_rows]
        size = len(test_grades)
        metrics |= {f"{row}{name}": value for name, value in evaluate(statistic, size).items()}
        taken = confidence_intervals(statistic, size, groups, resamples=resamples)
        intervals |= {f"{row}{name}": value for name, value in taken.items()}
        protocol = {
            **tested.settings,
            "train data": f"{train.name}, {len(grades)} samples with a grade",
            **_lacking(modality, train, test),
            "test grades": ", ".join(f"{int((test_grades == k).sum())} of {k}" for k in range(count)),
            "penalty": f"{SEVERITY_PENALTY:.2g}",
            "intervals": f"95 %, {resamples} bootstrap resamples of {len(groups.unique())} test patients",
        }
    return Result("Severity", metrics, intervals, protocol)


def probe_shares(
    checkpoint: str,
    train: str,
    test: str,
    findings: list[str] | None = None,
    shares: Sequence[float] = SHARES,
    uncertain: Literal["ignore", "zeros", "ones", "zeros-lsr", "ones-lsr"] = "ignore",
    blank: Blank = "zeros",
    output: str = "runs/probe_shares",
    modality: str | None = None,
    random_encoder: bool = True,
    supervised_steps: int = SUPERVISED_STEPS,
    limit: int | None = None,
    resamples: int = 1000,
    seed: int = 0,
    **options: Unpack[Reading],
) -> None:
    """Read findings from a frozen encoder with 1, 10 and 100 % of the labelled patients.

    Args:
        checkpoint: a model or encoder folder, or a .ckpt of a training run.
        train: samples with findings or labels (see `collimate data inspect`).
        test: others, of other patients.
        findings: which of them; all unless given.
        shares: of the training patients.
        uncertain: what becomes of uncertain findings (-1) in training; in testing they are left out.
        blank: findings that are not mentioned are absent (`zeros`) or not known (`ignore`).
        output: the folder of report.html and report.json.
        modality: which encoder; the model's first that is not text unless given.
        random_encoder: also probe the same encoder with random weights, the row that training must beat.
        supervised_steps: of the same encoder taught from random weights on each share; 0 for none.
        limit: at most so many samples of each, spread over the data.
        resamples: of the intervals, which draw patients.
        seed: of shares, splits and random weights.
    """
    import collimate
    from collimate.data import open_source
    from collimate.evaluation.commands import publish

    found = evaluate_shares(
        collimate.load(checkpoint),
        open_source(train),
        open_source(test),
        findings,
        shares,
        uncertain,
        blank,
        modality,
        random_encoder,
        supervised_steps,
        limit,
        resamples,
        seed,
        **options,
    )
    publish(found, checkpoint, output)


def probe_severity(
    checkpoint: str,
    train: str,
    test: str,
    column: str = "severity",
    output: str = "runs/probe_severity",
    modality: str | None = None,
    random_encoder: bool = True,
    limit: int | None = None,
    resamples: int = 1000,
    seed: int = 0,
    **options: Unpack[Reading],
) -> None:
    """Read grades of severity, such as an edema's from 0 to 3, from a frozen encoder.

    Args:
        checkpoint: a model or encoder folder, or a .ckpt of a training run.
        train: a table with a column of grades, or samples whose `json` has them; samples without one are left out.
        test: others, of other patients.
        column: where the grade stands, a whole number from 0.
        output: the folder of report.html and report.json.
        modality: which encoder; the model's first that is not text unless given.
        random_encoder: also probe the same encoder with random weights, the row that training must beat.
        limit: at most so many samples of each, spread over the data.
        resamples: of the intervals, which draw patients.
        seed: of the random weights.
    """
    import collimate
    from collimate.data import open_source
    from collimate.evaluation.commands import publish

    found = evaluate_severity(
        collimate.load(checkpoint),
        open_source(train),
        open_source(test),
        column,
        modality,
        random_encoder,
        limit,
        resamples,
        seed,
        **options,
    )
    publish(found, checkpoint, output)


# Reading ----------------------------------------------------------------------------------------------------------


def _probed(model: Model, modality: str | None) -> tuple[str, Encoder]:
    modality = modality or (other_modality(model) if isinstance(model, Method) else modality_of(model))
    return modality, encoder_of(model, modality)


def _features(
    encoder: Encoder, source: Source, modality: str, limit: int | None, **options: Unpack[Reading]
) -> Features:
    keys = keys_of(source)
    if keys.findings is None:
        raise ValueError(f"{source.name}: samples say nothing of findings: `labels.json`, or `findings` in `json`.")
    return extract(encoder, source, [modality], keys.all, False, limit=limit, **options)


def _read(
    encoder: Encoder, source: Source, modality: str, limit: int | None, **options: Unpack[Reading]
) -> tuple[Features, list[Any], Int64[Tensor, " N"]]:
    """Features, findings and patients."""
    from collimate.data.source import class_names

    found, keys = _features(encoder, source, modality, limit, **options), keys_of(source)
    said = findings_of(found.extras[keys.findings or ""], class_names(source))
    return found, said, patients_of(found.extras, keys.patients, len(found))


def _check_apart(fitted: Features, tested: Features, train: Source, test: Source) -> None:
    """No patient is in both, where samples say whose they are."""
    keys = keys_of(train).patients
    if keys is None or keys != keys_of(test).patients:
        return
    sides = [
        [str(value["patient"] if keys == "json" else value) for value in each.extras[keys]] for each in (fitted, tested)
    ]
    check_patients({"train": sides[0], "test": sides[1]})


def _lacking(modality: str, train: Having, test: Having) -> dict[str, str]:
    """What protocols say of samples without the modality, where there are any."""
    if not train.lacking + test.lacking:
        return {}
    return {"without": f"{modality}: {train.lacking} samples in training, {test.lacking} in testing"}


def _common(train: Sequence[str], test: Sequence[str]) -> list[str]:
    return [name for name in train if name in set(test)] or list(train)


def _hard(labels: Float[Tensor, "n C"]) -> Float[Tensor, "n C"]:
    """Softened labels to the side on which they lie: a logistic regression takes no shares."""
    return torch.where(labels.isnan(), torch.nan, (labels > 0.5).to(labels.dtype))


def _share_note(groups: Tensor, fitted: Tensor, names: Sequence[str]) -> str:
    chance = [name for name, learned in zip(names, fitted.tolist(), strict=True) if not learned]
    note = f"{len(groups.unique())} patients, {len(groups)} samples"
    return note + (f"; as chance, without positives or negatives: {', '.join(chance)}" if chance else "")


def _grades(found: Features, column: str) -> tuple[Int64[Tensor, " n"], Int64[Tensor, " n"]]:
    """The samples that have a grade, and their grades."""
    rows, grades = [], []
    for place, row in enumerate(found.extras["json"]):
        value = row.get(column) if isinstance(row, Mapping) else None
        if value is None or value == "":
            continue
        text = str(value).removesuffix(".0")
        if not text.isdecimal():
            raise ValueError(
                f"Sample {place}: {column!r} is {value!r}, where a grade, a whole number from 0, is expected."
            )
        rows.append(place)
        grades.append(int(text))
    if len(set(grades)) < 2:
        raise ValueError(f"There are {len(set(grades))} different grades in {column!r}: two are the least.")
    return torch.tensor(rows), torch.tensor(grades)
