"""Synthetic patients: who is ill of what, visit by visit, before any sensor sees it.

Seven conditions are drawn, each there or not. Two of them show in the X-ray and in the ECG, with one severity, so that
the two pictures of a patient know of each other; the others show in one alone. Links and frequencies are invented: they
are no epidemiology.

| condition | in the X-ray | in the ECG |
|---|---|---|
| hypertrophy, lasting | enlarged heart | high voltage |
| infection | lung opacity | tachycardia |
| effusion | pleural effusion | |
| collapse | pneumothorax | |
| block, lasting | | wide qrs |
| infarction | | st elevation |
| ischemia | | t wave inversion |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from collimate_world.scene import Split, split_number

Sensor = Literal["xray", "ecg"]

XRAY_FINDINGS = ("enlarged heart", "lung opacity", "pleural effusion", "pneumothorax")
ECG_FINDINGS = ("high voltage", "tachycardia", "wide qrs", "st elevation", "t wave inversion")
FINDINGS = XRAY_FINDINGS + ECG_FINDINGS
"""All that may be found, in the order of the classes' numbers."""

SIDES = ("right", "left")
ZONES = ("upper", "lower")
TERRITORIES = ("anterior", "inferior")

_CONDITIONS = (
    ("enlarged heart", "high voltage"),
    ("lung opacity", "tachycardia"),
    ("pleural effusion",),
    ("pneumothorax",),
    ("wide qrs",),
    ("st elevation",),
    ("t wave inversion",),
)
_LASTING = ("enlarged heart", "wide qrs")  # a patient has them at every visit, or at none
_FREQUENCY = 0.35
_PATIENTS = 400  # of the world's random numbers; those before it are for scenes, sounds and clips


@dataclass(frozen=True)
class Visit:
    """One X-ray and one ECG of a patient.

    Attributes:
        key: seed, split, patient and visit, from which all else was drawn.
        severity: finding -> how marked it is, 0 to 1; those that are absent are missing.
        place: finding -> where it is, for those that have a side, a zone or leads.
        build: width of the chest, as a factor about 1.
        cardiothoracic: width of the heart over that of the chest within the ribs.
        heart_rate: beats a minute.
    """

    key: tuple[int, ...]
    severity: Mapping[str, float]
    place: Mapping[str, str]
    build: float
    cardiothoracic: float
    heart_rate: float

    def has(self, finding: str) -> bool:
        return finding in self.severity

    def findings(self, *known: str) -> list[str]:
        """Those of `FINDINGS`, or of these, that the visit has."""
        return [finding for finding in known or FINDINGS if self.has(finding)]

    def generator(self, number: int) -> np.random.Generator:
        """Random numbers of the visit alone, for what a sensor adds."""
        return np.random.default_rng((*self.key, _PATIENTS, number))


def sample_visit(split: Split, patient: int, visit: int, seed: int = 0) -> Visit:
    """A visit of a patient: a pure function of its arguments.

    Args:
        split: train, val or test; their patients are others.
        patient, visit: their numbers, from 0.
        seed: another seed, other patients.

    Raises:
        ValueError: no such split.
    """
    lasting = np.random.default_rng((seed, split_number(split), patient, _PATIENTS))
    key = (seed, split_number(split), patient, visit)
    passing = np.random.default_rng((*key, _PATIENTS, 0))
    build, heart, pulse = lasting.uniform((0.92, 0.40, 58), (1.06, 0.48, 88))
    severity: dict[str, float] = {}
    for signs in _CONDITIONS:
        draws = (lasting if signs[0] in _LASTING else passing).random(2)
        if draws[0] < _FREQUENCY:
            severity |= dict.fromkeys(signs, float(draws[1]))
    if "enlarged heart" in severity:
        heart = 0.55 + 0.13 * severity["enlarged heart"]
    if "tachycardia" in severity:
        pulse = 108 + 37 * severity["tachycardia"]
    return Visit(key, severity, _places(severity, passing), float(build), float(heart), float(pulse))


def _places(severity: Mapping[str, float], rng: np.random.Generator) -> dict[str, str]:
    sides, zone, leads = rng.integers(2, size=3), rng.integers(2), rng.integers(2, size=2)
    places = {
        "lung opacity": f"{SIDES[sides[0]]} {ZONES[zone]}",
        "pleural effusion": SIDES[sides[1]],
        "pneumothorax": SIDES[sides[2]],
        "st elevation": TERRITORIES[leads[0]],
        "t wave inversion": TERRITORIES[leads[1]],
    }
    return {finding: place for finding, place in places.items() if finding in severity}
