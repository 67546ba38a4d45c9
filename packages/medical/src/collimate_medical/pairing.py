"""X-rays and ECGs of the same patients, taken within days of each other, with the reports of both.

MoRE (Thapa et al. 2024, arXiv 2410.16239) joins every X-ray of a patient with every ECG within 60 days (`all`). One
picture then meets many ECGs, each the negative of the others; here an X-ray has the ECG that is nearest in time unless
asked otherwise. Dates that a data set has shifted for each patient, as MIMIC's are, keep their differences.

Patients are compared and counted, and never named: not in samples, whose `patient.cls` is a running number, and not in
messages.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import combinations
from typing import Literal, NamedTuple

from collimate.data.captions import captions_of
from collimate.data.source import Sample, Source
from collimate_medical.more import PATIENT

WINDOW_DAYS = 60.0  # preprocessing/preprocess_data.py


class Study(NamedTuple):
    """Whose an X-ray or an ECG is, and when it was taken."""

    patient: Hashable
    when: datetime


class StudyPair(NamedTuple):
    """The places of an X-ray and of an ECG in their lists, and how much later the ECG was taken, in days."""

    xray: int
    ecg: int
    days: float


def pair_studies(
    xrays: Sequence[Study],
    ecgs: Sequence[Study],
    window_days: float = WINDOW_DAYS,
    policy: Literal["nearest", "all"] = "nearest",
) -> list[StudyPair]:
    """The pairs of one patient at most so many days apart, in the order of the X-rays.

    Args:
        xrays, ecgs: in any order.
        window_days: the most, in days of 24 hours, ends included.
        policy: `nearest` takes one ECG for each X-ray, the earlier of two that are as near; `all` takes each.

    Raises:
        ValueError: the policy is none of those, or the window is negative.
    """
    if policy not in ("nearest", "all"):
        raise ValueError(f"policy is nearest or all; got {policy!r}.")
    if window_days < 0:
        raise ValueError(f"window_days is 0 or more; got {window_days:g}.")
    by_patient: dict[Hashable, list[tuple[datetime, int]]] = defaultdict(list)
    for place, ecg in enumerate(ecgs):
        by_patient[ecg.patient].append((ecg.when, place))
    for several in by_patient.values():
        several.sort()
    window, pairs = timedelta(days=window_days), []
    for place, xray in enumerate(xrays):
        near = _within(by_patient.get(xray.patient, []), xray.when, window)
        if near and policy == "nearest":
            near = [min(near, key=lambda each: (abs(each[0] - xray.when), each))]
        pairs += [StudyPair(place, ecg, (when - xray.when) / timedelta(days=1)) for when, ecg in near]
    return pairs


def check_patients(splits: Mapping[str, Iterable[Hashable]]) -> None:
    """See that no patient is in two parts of the data, over all modalities together.

    Args:
        splits: name of a part -> the patients of its X-rays, its ECGs and its reports.

    Raises:
        ValueError: some are; it says how many, and not who.
    """
    every = {name: set(patients) for name, patients in splits.items()}
    shared = {(one, other): len(every[one] & every[other]) for one, other in combinations(every, 2)}
    if found := [f"{count} in {one} and {other}" for (one, other), count in shared.items() if count]:
        raise ValueError(f"Patients are in two parts of the data: {', '.join(found)}. Split by patient, not by row.")


def joined_report(xray: str, ecg: str) -> str:
    """One text of both reports, each said to be of what it is; of one alone where the other is empty."""
    parts = [f"{name}: {text.strip()}" for name, text in (("Chest X-ray", xray), ("ECG", ecg)) if text.strip()]
    return " ".join(parts)


class PairedSource(Source):
    """Samples that hold an X-ray, an ECG and one text of both reports, as MoRE reads them.

    The text is `txt`; `captions.json` has the report of each, of the kinds `xray` and `ecg`.

    Args:
        xrays: a source of X-rays, whose first caption is the report, where there is one.
        ecgs: a source of ECGs, likewise.
        pairs: which belong together; see `pair_studies`.
        patients: whose each X-ray is. A sample has a running number of it.

    Raises:
        ValueError: there are no pairs, or not as many patients as X-rays.
    """

    def __init__(self, xrays: Source, ecgs: Source, pairs: Sequence[StudyPair], patients: Sequence[Hashable]) -> None:
        if not pairs:
            raise ValueError(f"{xrays.name} and {ecgs.name} have no pairs: is the window too short?")
        if len(patients) != len(xrays):
            raise ValueError(f"There are {len(xrays)} X-rays in {xrays.name}, and patients of {len(patients)}.")
        self.xrays, self.ecgs, self.pairs = xrays, ecgs, list(pairs)
        self.name = f"{xrays.name} with {ecgs.name}"
        numbers: dict[Hashable, int] = {}
        self.numbers = [numbers.setdefault(patient, len(numbers)) for patient in patients]

    def __len__(self) -> int:
        return len(self.pairs)

    def read(self, index: int) -> Sample:
        pair = self.pairs[index]
        xray, ecg = self.xrays.read(pair.xray), self.ecgs.read(pair.ecg)
        sample: Sample = {"__key__": f"{pair.xray}+{pair.ecg}", "__source__": self.name}
        sample |= {key: value for key, value in ecg.items() if key.startswith("ecg.")}
        # Rows of tables stay behind: they may name the patient.
        left = ("txt", "captions.json", "json", "ecg.", "__")
        sample |= {key: value for key, value in xray.items() if not key.startswith(left)}
        sample[PATIENT] = self.numbers[pair.xray]
        reports = {"xray": _report(xray), "ecg": _report(ecg)}
        if text := joined_report(**reports):
            sample["txt"] = text
            sample["captions.json"] = [{"text": each, "kind": kind} for kind, each in reports.items() if each]
        return sample


def _within(several: list[tuple[datetime, int]], when: datetime, window: timedelta) -> list[tuple[datetime, int]]:
    """Those of a sorted list that lie in the window."""
    first = bisect_left(several, (when - window, -1))
    last = bisect_left(several, (when + window + timedelta.resolution, -1))
    return several[first:last]


def _report(sample: Sample) -> str:
    """The first caption of a sample; empty where it has none."""
    return captions_of(sample)[0].text.strip() if {"txt", "captions.json"} & sample.keys() else ""
