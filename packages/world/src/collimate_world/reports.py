"""Reports of synthetic patients: a sentence for each finding that is there, and for most of those that are not."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from collimate_world.captions import pick
from collimate_world.patient import ECG_FINDINGS, XRAY_FINDINGS, Sensor, Visit

_DRAWS: Mapping[Sensor, int] = {"xray": 3, "ecg": 4}  # of the visit's random numbers
_DENIED = 0.75  # the share of absent findings that are mentioned

_PRESENT = ("There is {}.", "{} is seen.", "{}.", "The {picture} shows {}.")
_ABSENT = ("There is no {}.", "No {}.", "No {} is seen.", "The {picture} does not show {}.", "No sign of {}.")
_OTHER_WORDS: Mapping[str, tuple[str, str]] = {
    "enlarged heart": ("cardiomegaly", "the heart is of normal size."),
    "tachycardia": ("a fast heart rate", "the heart rate is normal."),
}
"""Another name of a finding, and another way to say that it is absent."""

_OTHERWISE = 0.2  # how often those are used


def report(visit: Visit, *sensors: Sensor) -> str:
    """The report of an X-ray, of an ECG, or of both in one text, each said to be of what it is.

    Args:
        visit: see `collimate_world.patient.sample_visit`.
        sensors: what was taken; of one alone, its report is not introduced.
    """
    parts = [_sentences(visit, sensor) for sensor in sensors]
    if len(parts) == 1:
        return parts[0]
    return " ".join(f"{_NAMES[sensor]}: {text}" for sensor, text in zip(sensors, parts, strict=True))


_NAMES: Mapping[Sensor, str] = {"xray": "Chest X-ray", "ecg": "ECG"}


def _sentences(visit: Visit, sensor: Sensor) -> str:
    known = XRAY_FINDINGS if sensor == "xray" else ECG_FINDINGS
    rng = visit.generator(_DRAWS[sensor])
    picture = "radiograph" if sensor == "xray" else "ecg"
    sentences = [_sentence(visit, finding, picture, rng) for finding in rng.permutation(known).tolist()]
    text = " ".join(sentence[0].upper() + sentence[1:] for sentence in sentences if sentence)
    return text or "No other finding."


def _sentence(visit: Visit, finding: str, picture: str, rng: np.random.Generator) -> str:
    """What is said of a finding, or nothing."""
    present, otherwise = visit.has(finding), rng.random() < _OTHERWISE
    other = _OTHER_WORDS.get(finding)
    if not present and rng.random() >= _DENIED:
        return ""
    if not present and other and otherwise:
        return other[1]
    name = other[0] if present and other and otherwise else finding
    words = f"{name} {_where(visit, finding)}".strip() if present else name
    return pick(rng, _PRESENT if present else _ABSENT).format(words, picture=picture)


def _where(visit: Visit, finding: str) -> str:
    place = visit.place.get(finding)
    if place is None:
        return ""
    if finding == "lung opacity":
        return f"in the {place} zone"
    return f"in the {place} leads" if finding in ECG_FINDINGS else f"on the {place}"
