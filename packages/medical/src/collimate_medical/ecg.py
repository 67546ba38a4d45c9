"""Electrocardiograms as they come, and brought to one form: twelve leads by name, millivolts, one rate.

Files order leads as they please (MIMIC-IV-ECG has aVF before aVL, PTB-XL after it), so that a lead is always taken by
its name, whatever its case: `I`, `Lead I`, `MDC_ECG_LEAD_I`, `Lead I (Einthoven)`. Limb leads that are missing follow
from two others (Einthoven, Goldberger):

    III = II - I,    aVR = -(I + II) / 2,    aVL = I - II / 2,    aVF = II - I / 2.

Shape legend: C leads, T samples of a lead.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from jaxtyping import Bool, Float, Float32

from collimate.data.decoding import Undecodable

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
"""The twelve standard leads in the order of PTB-XL, which is the canonical one here."""

MIMIC_LEADS = ("I", "II", "III", "aVR", "aVF", "aVL", "V1", "V2", "V3", "V4", "V5", "V6")
"""The order of MIMIC-IV-ECG, in which the weights of MoRE were trained."""

MILLIVOLTS = {"mv": 1.0, "uv": 1e-3, "µv": 1e-3, "μv": 1e-3, "nv": 1e-6, "v": 1e3}
"""Units of a lead, in lower case, as millivolts; both signs for micro are in use."""

MAX_SAMPLES = 2**27  # ours, of all leads together: 31 days of one lead at 50 Hz, half a GiB
RATES = (10.0, 100_000.0)  # ours: no ECG is sampled more slowly or faster, in Hz
LONGEST_GAP = 0.1  # ours: seconds without a number that are bridged by a line
FLAT = 1e-6  # ours, in mV: a lead that moves less is connected to nothing

_NAMES = {name.lower(): name for name in LEADS}
_DERIVED = {"III": (-1.0, 1.0), "aVR": (-0.5, -0.5), "aVL": (1.0, -0.5), "aVF": (-0.5, 1.0)}  # of I and of II


@dataclass(frozen=True)
class ECG:
    """Leads of one length and rate.

    Attributes:
        signal: (C, T) float32, in millivolts; NaN where nothing was recorded.
        rate: samples a second.
        leads: the C names, standard ones as in `LEADS`.

    Raises:
        Undecodable: the shapes do not fit, there is no sample, the rate is none, or two leads have one name.
    """

    signal: Float32[np.ndarray, "C T"]
    rate: float
    leads: tuple[str, ...] = LEADS

    def __post_init__(self) -> None:
        if self.signal.ndim != 2 or len(self.signal) != len(self.leads):
            raise Undecodable("leads do not fit", f"{len(self.leads)} names for an array of {self.signal.shape}")
        if not self.signal.size:
            raise Undecodable("ECG without samples", f"an array of {self.signal.shape}")
        if not RATES[0] <= self.rate <= RATES[1]:
            raise Undecodable("wrong sampling rate", f"{self.rate:g} Hz, where ECGs have {RATES[0]:g} to {RATES[1]:g}")
        if twice := sorted({name for name in self.leads if self.leads.count(name) > 1}):
            raise Undecodable("leads of one name", ", ".join(twice))

    @property
    def valid(self) -> Bool[np.ndarray, "C T"]:
        """Where a number was recorded."""
        return np.isfinite(self.signal)

    @property
    def dead_leads(self) -> tuple[str, ...]:
        """The names of leads that hold nothing, or one value."""
        dead = []
        for name, lead in zip(self.leads, self.signal, strict=True):
            known = lead[np.isfinite(lead)]
            if not known.size or np.ptp(known) < FLAT:
                dead.append(name)
        return tuple(dead)


def lead_name(text: str) -> str:
    """The standard name of a lead, or the text itself, without blanks around it, where it is none.

    `lead_name("Lead aVR (Goldberger)")` is `aVR`, `lead_name("MDC_ECG_LEAD_V1")` is `V1`.
    """
    bare = re.sub(r"\(.*?\)", "", text).strip()
    bare = re.sub(r"^(mdc_ecg_lead_|ecg[ _]+lead[ _]+|ecg[ _]+|lead[ _]+)", "", bare, flags=re.IGNORECASE).strip()
    return _NAMES.get(bare.lower(), text.strip())


def with_leads(ecg: ECG, wanted: Sequence[str] = LEADS) -> ECG:
    """The ECG with these leads in this order. Missing limb leads are derived; what then is missing is NaN.

    Args:
        wanted: names of `LEADS`.

    Raises:
        Undecodable: not one of the leads is there.
    """
    known = dict(zip(ecg.leads, ecg.signal, strict=True))
    if "I" in known and "II" in known:
        derived = {name: a * known["I"] + b * known["II"] for name, (a, b) in _DERIVED.items()}
        known = derived | known
    if not any(name in known for name in wanted):
        raise Undecodable("no standard lead", f"there are {', '.join(ecg.leads)}")
    nothing = np.full(ecg.signal.shape[1], np.nan, np.float32)
    return ECG(np.stack([known.get(name, nothing) for name in wanted]).astype(np.float32), ecg.rate, tuple(wanted))


def missing_leads(ecg: ECG, wanted: Sequence[str] = LEADS) -> tuple[str, ...]:
    """The names of leads that the ECG neither has nor gives by its others."""
    given = {*ecg.leads, *(_DERIVED if {"I", "II"} <= set(ecg.leads) else ())}
    return tuple(name for name in wanted if name not in given)


def filled(
    signal: Float32[np.ndarray, "C T"], rate: float, longest: float = LONGEST_GAP
) -> tuple[Float32[np.ndarray, "C T"], Bool[np.ndarray, "C T"]]:
    """The signal without NaN, and where it can be believed.

    Gaps of at most `longest` seconds between two numbers are bridged by a line, and believed. Anything else becomes 0.
    """
    valid = np.isfinite(signal)
    signal, believed = np.where(valid, signal, 0).astype(np.float32), valid.copy()
    for lead in np.flatnonzero(~valid.all(1) & valid.any(1)):
        for first, last in _gaps(valid[lead]):
            if first > 0 and last < signal.shape[1] and last - first <= longest * rate:
                ends = signal[lead, first - 1], signal[lead, last]
                signal[lead, first:last] = np.linspace(*ends, last - first + 2)[1:-1]
                believed[lead, first:last] = True
    return signal, believed


def resampled(signal: Float[np.ndarray, "C T"], rate: float, wanted: float) -> Float32[np.ndarray, "C t"]:
    """The signal at another rate, through a polyphase filter against aliasing (scipy's `resample_poly`).

    Args:
        signal: without NaN, which would spread.
        rate, wanted: samples a second, before and after.
    """
    from scipy.signal import resample_poly

    ratio = Fraction(wanted / rate).limit_denominator(1000)
    if ratio == 1:
        return signal.astype(np.float32)
    return resample_poly(signal, ratio.numerator, ratio.denominator, axis=1).astype(np.float32)


def of_length(signal: Float[np.ndarray, "C T"], samples: int) -> Float[np.ndarray, "C t"]:
    """The first so many samples, with zeros behind them where there are fewer."""
    signal = signal[:, :samples]
    return np.pad(signal, ((0, 0), (0, samples - signal.shape[1])))


def _gaps(valid: Bool[np.ndarray, " T"]) -> list[tuple[int, int]]:
    """The runs of False: the first place of each, and that behind it."""
    edges = np.flatnonzero(np.diff(np.concatenate([[True], valid, [True]]).astype(np.int8)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
