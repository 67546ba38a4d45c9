"""The visits of synthetic patients as a source of samples, made when they are read."""

from __future__ import annotations

import io
from typing import cast

import numpy as np
from jaxtyping import UInt

from collimate.data import Sample
from collimate_world.chest import chest_film
from collimate_world.generated import Generated
from collimate_world.heartbeat import LEADS, heartbeats
from collimate_world.patient import ECG_FINDINGS, FINDINGS, XRAY_FINDINGS, Sensor, Visit, sample_visit
from collimate_world.reports import report
from collimate_world.scene import SPLITS, Split
from collimate_world.source import number_range


class PatientSource(Generated):
    """Visits as samples: `world-patients:train?patients=2000&visits=1-3` on the command line. All of it is synthetic.

    A sample has `png` (the chest film, an array (size, size) of bytes or of 16-bit numbers), `ecg.npz` (`signal`
    (12, T) in millivolts, `rate`, `leads`), `txt` (the report of both), `captions.json` (the report of each, of the
    kinds `xray` and `ecg`), `labels.json` (the findings of both), `patient.cls` (the patient's number, another in each
    split) and `json` (all that was drawn, and that it is synthetic).

    Args:
        split: train, val or test; no patient is in two of them.
        patients: their number.
        visits: of each patient: a number, or a range as in `1-3`.
        size: side of the film in pixels.
        bits: of its pixels, 8 or 16.
        rate: samples of the ECG a second.
        seconds: of the ECG.
        missing: the share of samples that lack the X-ray or, as many, the ECG; their reports are of the other alone.
        shuffled: film, ECG and report are of different visits, so that nothing can be learned: the control. Labels are
            those of what is shown.
        label: a finding whose presence is the class of the sample, `cls`, for probes.
        seed: another seed, other patients.

    Raises:
        ValueError: an argument is not one of these; says which are.
    """

    def __init__(
        self,
        split: str = "train",
        patients: int = 1000,
        visits: int | str = 1,
        size: int = 64,
        bits: int = 8,
        rate: float = 100.0,
        seconds: float = 10.0,
        missing: float = 0.0,
        shuffled: bool = False,
        label: str | None = None,
        seed: int = 0,
    ) -> None:
        low, high = number_range(visits, int, "The number of visits")
        if not 1 <= low <= high:
            raise ValueError(f"A patient has one visit or more, the lesser number first; not {visits!r}.")
        if bits not in (8, 16):
            raise ValueError(f"Pixels have 8 or 16 bits, not {bits}.")
        if not 0 <= missing <= 1:
            raise ValueError(f"missing is a share of the samples, from 0 to 1; not {missing}.")
        if label is not None and label not in FINDINGS:
            raise ValueError(f"The label is one of {', '.join(FINDINGS)}; not {label!r}.")
        if patients < 1 or size < 8 or rate * seconds < 1:
            raise ValueError(f"There are patients, pixels and samples; not {patients}, {size} and {rate * seconds:g}.")
        self.size, self.bits, self.rate, self.seconds = size, bits, rate, seconds
        self.missing, self.shuffled, self.label = missing, shuffled, label
        self.class_names = list(FINDINGS) if label is None else [f"no {label}", label]
        sample_visit(cast(Split, split), 0, 0, seed)  # refuses what cannot be, before training starts
        counts = np.random.default_rng((seed, SPLITS[cast(Split, split)], _COUNTS)).integers(low, high + 1, patients)
        self._ends = np.cumsum(counts)
        name = f"world-patients:{split}?patients={patients}&visits={visits}"
        super().__init__(name, split, int(self._ends[-1]), seed)
        if shuffled and len(self) < 3:
            raise ValueError(f"Three visits or more can be shuffled; there are {len(self)}.")

    def visit(self, index: int) -> Visit:
        """Who the sample is of, and which of the patient's visits."""
        patient = int(np.searchsorted(self._ends, index, side="right"))
        first = int(self._ends[patient - 1]) if patient else 0
        return sample_visit(self.split, patient, index - first, self.seed)

    def made(self, index: int) -> Sample:
        shown, heard, told = (self.visit(other) for other in self._parts(index))
        sensors = self._sensors(index)
        findings = shown.findings(*XRAY_FINDINGS) + heard.findings(*ECG_FINDINGS)
        patient = shown.key[2]
        severity = {**shown.severity, **heard.severity}
        sample: Sample = {
            "__key__": f"visit-{self.split}-{self.seed}-{patient:06d}-{shown.key[3]}",
            "__source__": self.name,
            "txt": report(told, *sensors),
            "captions.json": [{"text": report(told, sensor), "kind": sensor} for sensor in sensors],
            "labels.json": findings,
            "patient.cls": patient * len(SPLITS) + SPLITS[self.split],
            "json": {
                "synthetic": True,
                "split": self.split,
                "seed": self.seed,
                "index": index,
                "patient": patient,
                "visit": shown.key[3],
                "severity": {finding: severity[finding] for finding in findings},
                "cardiothoracic": shown.cardiothoracic,
                "heart_rate": heard.heart_rate,
                "report": list(told.findings()),
            },
        }
        if "xray" in sensors:
            sample["png"] = _pixels(chest_film(shown, self.size), self.bits)
        if "ecg" in sensors:
            sample["ecg.npz"] = _encoded(heartbeats(heard, self.rate, self.seconds), self.rate)
        if self.label is not None:
            sample["cls"] = int(self.label in findings)
        return sample

    def _parts(self, index: int) -> tuple[int, int, int]:
        """Of which samples film, ECG and report are."""
        if not self.shuffled:
            return index, index, index
        steps = np.random.default_rng((self.seed, index, _SHUFFLED)).choice(len(self) - 1, 2, replace=False) + 1
        ecg, text = ((index + int(step)) % len(self) for step in steps)
        return index, ecg, text

    def _sensors(self, index: int) -> tuple[Sensor, ...]:
        if not self.missing:
            return "xray", "ecg"
        draw = np.random.default_rng((self.seed, SPLITS[self.split], index, _MISSING)).random()
        if draw >= self.missing:
            return "xray", "ecg"
        return ("xray",) if draw < self.missing / 2 else ("ecg",)


def _pixels(film: np.ndarray, bits: int) -> UInt[np.ndarray, "S S"]:
    return np.rint(film * (2**bits - 1)).astype(np.uint8 if bits == 8 else np.uint16)


def _encoded(signal: np.ndarray, rate: float) -> bytes:
    """An `ecg.npz`, as the medical package reads it."""
    file = io.BytesIO()
    np.savez(file, signal=signal, rate=np.float64(rate), leads=np.array(LEADS))
    return file.getvalue()


_COUNTS, _MISSING, _SHUFFLED = 401, 402, 403  # of the world's random numbers
