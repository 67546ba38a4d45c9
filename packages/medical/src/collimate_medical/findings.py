"""What samples say of their findings and of their patients, however they say it.

| key of a sample | says |
|---|---|
| `json` with `findings` | label -> 1, 0 or -1 (uncertain), blank ones left out; as the importers write it |
| `labels.json` | the names of those that are present; all others are absent |
| `patient.cls`, `json` with `patient` | the patient's number; without either, each sample is a patient of its own |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Int64
from torch import Tensor

from collimate.data import Source
from collimate.data.classes import labels_of
from collimate.data.source import CorruptSample, class_names
from collimate_medical.label_policies import Findings
from collimate_medical.more import PATIENT

_KEYS = ("json", "labels.json", PATIENT)


class Keys(NamedTuple):
    """The keys of a source's samples that tell of findings and of patients; None where nothing tells."""

    findings: str | None
    patients: str | None

    @property
    def all(self) -> list[str]:
        """Those to be asked for."""
        return list(dict.fromkeys(key for key in self if key is not None))


def keys_of(source: Source) -> Keys:
    """How the samples of a source say it: the first one that can be read tells."""
    for place in range(len(source)):
        try:
            sample = source.peek(place, _KEYS)
        except CorruptSample:
            continue
        row = _row(sample.get("json"))
        findings = "json" if "findings" in row else "labels.json" if "labels.json" in sample else None
        patients = PATIENT if PATIENT in sample else "json" if "patient" in row else None
        return Keys(findings, patients)
    return Keys(None, None)


def findings_of(values: Sequence[Any], names: Sequence[str] | None = None) -> list[Findings]:
    """Findings of each sample.

    Args:
        values: what samples have under `Keys.findings`.
        names: of the classes, where samples say numbers, and which are absent where they are not listed.

    Raises:
        ValueError: a number is beyond the names.
    """
    found: list[Findings] = []
    for value in values:
        if isinstance(value, Mapping):
            found.append(value.get("findings") or {})
            continue
        present = [_name(label, names) for label in labels_of(value)]
        found.append(dict.fromkeys(names or (), 0) | dict.fromkeys(present, 1))
    return found


def names_in(findings: Sequence[Findings], source: Source) -> list[str]:
    """The labels that a source speaks of: those that it knows as its classes, and others of its samples."""
    return list(dict.fromkeys([*(class_names(source) or ()), *(name for each in findings for name in each)]))


def patients_of(extras: Mapping[str, Sequence[Any]], key: str | None, count: int) -> Int64[Tensor, " N"]:
    """The patient of each sample.

    Args:
        extras: key -> what the samples have under it.
        key: `Keys.patients`.
        count: N.
    """
    if key is None:
        return torch.arange(count)
    values = [_row(value).get("patient") if key == "json" else value for value in extras[key]]
    numbers = {value: place for place, value in enumerate(dict.fromkeys(map(str, values)))}
    return torch.tensor([numbers[str(value)] for value in values])


def _row(value: Any) -> Mapping[str, Any]:
    from collimate.data.decoding import Undecodable, decode

    if isinstance(value, bytes):
        try:
            value = decode("json", value)
        except Undecodable:
            return {}
    return value if isinstance(value, Mapping) else {}


def _name(label: str | int, names: Sequence[str] | None) -> str:
    if isinstance(label, str):
        return label
    if names is None or not 0 <= label < len(names):
        raise ValueError(f"A sample has the label {label}, of {len(names or ())} names.")
    return names[label]
