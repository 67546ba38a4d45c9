"""ECGs of synthetic patients: the waves of a beat as Gaussians of a dipole in space, seen by twelve leads.

The leads are Dower's projections of the dipole (Dower, Machado and Osborne 1980, Clinical Cardiology 3, 87), but for
III, aVR, aVL and aVF, which follow from I and II (Einthoven, Goldberger).

Shape legend: T samples of a lead.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float32, Float64

from collimate_world.patient import Visit

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
_SEEN = np.array(  # of a dipole that points to the left, to the feet and to the back
    [
        [0.632, -0.235, 0.059],  # I
        [0.235, 1.066, -0.132],  # II
        [-0.515, 0.157, -0.917],  # V1 to V6
        [0.044, 0.164, -1.387],
        [0.882, 0.098, -1.277],
        [1.213, 0.127, -0.601],
        [1.125, 0.127, -0.086],
        [0.831, 0.076, 0.230],
    ]
)
_LIMBS = np.array([[1, 0], [0, 1], [-1, 1], [-0.5, -0.5], [1, -0.5], [-0.5, 1]])  # I to aVF, of I and II
DOWER = np.vstack([_LIMBS @ _SEEN[:2], _SEEN[2:]])

_FRONT, _DOWN = np.array([0.3, 0.1, -1.0]), np.array([-0.2, 1.0, 0.1])
"""Where the dipole of an injury points: to the anterior leads, or to the inferior ones."""

_DRAWS = 2  # of the visit's random numbers
Wave = tuple[float, float, np.ndarray]
"""Seconds after the R peak, deviation in seconds, dipole in millivolts."""


def heartbeats(visit: Visit, rate: float = 100.0, seconds: float = 10.0) -> Float32[np.ndarray, "12 T"]:
    """The ECG of a visit in millivolts, its leads in the order of `LEADS`.

    Args:
        visit: see `collimate_world.patient.sample_visit`.
        rate: samples a second.
        seconds: its length.
    """
    rng = visit.generator(_DRAWS)
    time = np.arange(round(rate * seconds)) / rate
    period = 60 / visit.heart_rate
    peaks = _peaks(seconds, period, rng)
    after = np.searchsorted(peaks, time)  # there is a beat before the first sample and one behind the last
    since, until = time - peaks[after - 1], time - peaks[after]
    dipole = np.zeros((3, len(time)))
    for centre, width, size in _waves(visit, period, rng):
        shape = np.exp(-(((since - centre) / width) ** 2) / 2) + np.exp(-(((until - centre) / width) ** 2) / 2)
        dipole += size[:, None] * shape
    signal = DOWER @ dipole + _wander(time, rng) + 0.015 * rng.standard_normal((len(LEADS), len(time)))
    return signal.astype(np.float32)


def _peaks(seconds: float, period: float, rng: np.random.Generator) -> Float64[np.ndarray, " beats"]:
    """When the R peaks are, with the variability of a sinus rhythm, from before the record to behind it."""
    count = int(seconds / period * 1.3) + 4
    gaps = period * np.clip(1 + 0.03 * rng.standard_normal(count), 0.88, 1.12)
    return np.cumsum(gaps) - gaps[0] - period * rng.uniform(0.1, 1)


def _waves(visit: Visit, period: float, rng: np.random.Generator) -> Iterator[Wave]:
    """P, Q, R, S and T, and the shift of ST where there is one."""
    size = rng.uniform(0.85, 1.15, 3)
    high = 1.7 + 0.8 * visit.severity["high voltage"] if visit.has("high voltage") else 1.0
    wide = 1.9 + 0.5 * visit.severity["wide qrs"] if visit.has("wide qrs") else 1.0
    yield -0.11 - 0.05 * period - 0.02 * wide, 0.022, 0.10 * size[0] * np.array([0.6, 1.0, -0.1])
    yield -0.024 * wide, 0.009 * wide, -0.12 * high * np.array([0.8, 0.4, -1.2])
    yield 0.0, 0.012 * wide, 1.05 * size[1] * high * np.array([0.75, 0.65, 0.30])
    yield 0.027 * wide, 0.011 * wide, 0.45 * high * np.array([-0.3, -0.2, 0.9])
    recovery = 0.20 + 0.09 * period + 0.025 * (wide - 1)
    upright = 0.28 * size[2] * np.array([0.65, 0.60, -0.45])
    if visit.has("t wave inversion"):
        towards = _territory(visit.place["t wave inversion"])
        upright -= (0.42 + 0.16 * visit.severity["t wave inversion"]) * towards
    yield recovery, 0.035 + 0.02 * period, upright
    if visit.has("st elevation"):
        lifted = (0.22 + 0.20 * visit.severity["st elevation"]) * _territory(visit.place["st elevation"])
        yield 0.5 * recovery, 0.30 * recovery, lifted


def _territory(name: str) -> np.ndarray:
    return _FRONT if name == "anterior" else _DOWN


def _wander(time: Float64[np.ndarray, " T"], rng: np.random.Generator) -> Float64[np.ndarray, "leads T"]:
    """The slow movement of breathing, of another size in each lead."""
    slow = np.sin(2 * np.pi * rng.uniform(0.15, 0.35) * time + rng.uniform(0, 2 * np.pi))
    return rng.normal(0, 0.05, (len(LEADS), 1)) * slow
