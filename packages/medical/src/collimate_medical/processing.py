"""X-rays and ECGs to the inputs of towers, as MoRE prepares them.

Thapa et al. 2024, MoRE, arXiv 2410.16239; svthapa/MoRE, utils/create_dataset.py. Of an ECG, resampled to 100 Hz, the
baseline is the median over 0.6 s of the median over 0.2 s; it is subtracted, and each lead is brought to [-1, 1] by its
smallest and largest value.

Departures: leads are taken by name, gaps of up to 0.1 s are bridged, a flat lead becomes 0 (`official=True`: the order
of MIMIC-IV-ECG is `lead_order="mimic"`; gaps are 0, a flat lead is -1). The contrast of an X-ray is equalised, as
MoRE's released weights need it, only where asked for (`equalize`).

Shape legend: C leads, T samples of a lead.
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from PIL import Image
from torch import Tensor

from collimate.data.decoding import Undecodable
from collimate.processing import ImageProcessor, Processor
from collimate_medical.contrast import equalized
from collimate_medical.dicom import to_bytes
from collimate_medical.dicom_image import DicomImage
from collimate_medical.ecg import (
    FLAT,
    LEADS,
    LONGEST_GAP,
    MIMIC_LEADS,
    filled,
    missing_leads,
    of_length,
    resampled,
    with_leads,
)
from collimate_medical.reading import RawECG, read_ecg

XRAY_MEAN, XRAY_STD = 0.499, 0.293  # utils/create_dataset.py
BASELINE_WINDOWS = (0.2, 0.6)  # seconds; utils/create_dataset.py
EPS = 1e-10  # utils/create_dataset.py, normalize_per_lead
DICOM_SUFFIXES = (".dcm", ".dicom")
ENOUGH = 2  # ours: pixels of a smaller scale for each of the result's, which are then averaged as of the whole picture


class XRayProcessor(ImageProcessor):
    """Grey pictures of 8 or 16 bits, or DICOM files, to three equal channels.

    Args:
        size: the side of the result in pixels.
        mean, std: of the pixels in [0, 1], the same for all channels.
        resize: as of `ImageProcessor`. MoRE's towers were trained on `squash`; `longest` keeps the shape.
        equalize: whether contrast is then equalised (`collimate_medical.contrast`), as in MoRE.
    """

    modality = "xray"

    def __init__(
        self,
        size: int = 224,
        mean: float = XRAY_MEAN,
        std: float = XRAY_STD,
        resize: Literal["shortest", "squash", "longest"] = "squash",
        equalize: bool = False,
    ) -> None:
        super().__init__(size, (mean,) * 3, (std,) * 3, "bicubic", resize)
        self.equalize = equalize

    def __call__(self, raw: Any) -> UInt8[Tensor, "3 S S"]:
        """One picture to bytes; see `opened`. Of JPEG 2000 in DICOM, the smallest scale with `ENOUGH` is decoded."""
        picture = self.opened(raw)
        if isinstance(picture, DicomImage):
            width, height = self._resized(*picture.size)
            picture.draft("L", (ENOUGH * width, ENOUGH * height))
        return super().__call__(picture)

    def opened(self, raw: Any) -> Image.Image:
        """The whole picture, in grey.

        Args:
            raw: as for `ImageProcessor`; pictures of 16 bits are scaled, not cut off. Or the path of a DICOM file, or
                an array (H, W) of real numbers in [0, 1], such as `read_dicom` gives.
        """
        return grey_image(raw)

    def toned(self, pixels: UInt8[Tensor, "3 S S"]) -> UInt8[Tensor, "3 S S"]:
        if not self.equalize:
            return pixels
        return torch.from_numpy(equalized(np.ascontiguousarray(pixels[0]))).expand(3, -1, -1)


class ECGProcessor(Processor):
    """ECGs to (12, T) numbers.

    Args:
        rate: samples a second of the result.
        seconds: its length. Longer ECGs are cut at their end, shorter ones get zeros there.
        remove_baseline: whether slow movements are subtracted.
        scale: `lead` brings each lead to [-1, 1], so that amplitudes do not compare between leads; `all` divides by the
            largest deflection of any lead, so that they do; `none` leaves millivolts.
        lead_order: `standard` is `LEADS`; `mimic` has aVF before aVL, as the released weights need.
        missing: what becomes of leads that neither are in an ECG nor follow from its others: `refuse`, or `zero`.
        array_rate: samples a second of arrays that come without.
        official: gaps become 0 however short, and flat leads -1, as in the released code.

    Raises:
        ValueError: an option is none of those.
    """

    modality = "ecg"

    def __init__(
        self,
        rate: float = 100.0,
        seconds: float = 10.0,
        remove_baseline: bool = True,
        scale: Literal["lead", "all", "none"] = "lead",
        lead_order: Literal["standard", "mimic"] = "standard",
        missing: Literal["refuse", "zero"] = "refuse",
        array_rate: float | None = None,
        official: bool = False,
    ) -> None:
        for name, given, known in (
            ("scale", scale, ("lead", "all", "none")),
            ("lead_order", lead_order, ("standard", "mimic")),
            ("missing", missing, ("refuse", "zero")),
        ):
            if given not in known:
                raise ValueError(f"{name} is one of {', '.join(known)}; got {given!r}.")
        self.rate, self.seconds, self.samples = rate, seconds, round(rate * seconds)
        self.remove_baseline, self.scale, self.missing = remove_baseline, scale, missing
        self.leads = {"standard": LEADS, "mimic": MIMIC_LEADS}[lead_order]
        self.array_rate, self.official = array_rate, official

    def __call__(self, raw: RawECG) -> Float32[Tensor, "12 T"]:
        """One ECG to numbers; see `read_ecg` for what may hold it.

        Raises:
            Undecodable: a lead is missing, or it is no ECG.
        """
        ecg = read_ecg(raw, self.array_rate)
        if self.missing == "refuse" and (absent := missing_leads(ecg)):
            raise Undecodable(
                "missing leads",
                f"{', '.join(absent)}; there are {', '.join(ecg.leads)}. ECGProcessor(missing='zero') takes such ECGs",
            )
        ecg = with_leads(ecg, self.leads)
        signal, _ = filled(ecg.signal, ecg.rate, 0.0 if self.official else LONGEST_GAP)
        if not self.official:  # here, as the filter of another rate bends the ends of a constant
            signal[[name in ecg.dead_leads for name in ecg.leads]] = 0
        signal = of_length(resampled(signal, ecg.rate, self.rate), self.samples)
        if self.remove_baseline:
            signal = without_baseline(signal, self.rate)
        return torch.from_numpy(np.ascontiguousarray(self._scaled(signal), dtype=np.float32))

    def example(self) -> tuple[Float32[np.ndarray, "12 T"], float]:
        moments, lead = np.arange(self.samples) / self.rate, np.arange(1, 13)[:, None]
        return np.sin(2 * np.pi * lead * moments / 3).astype(np.float32), self.rate

    def _scaled(self, signal: Float32[np.ndarray, "12 T"]) -> np.ndarray:
        if self.scale == "none":
            return signal
        if self.scale == "all":
            return signal / max(float(np.abs(signal).max()), FLAT)
        low, high = signal.min(1, keepdims=True), signal.max(1, keepdims=True)
        scaled = 2 * (signal - low) / (high - low + EPS) - 1
        return scaled if self.official else np.where(high - low < FLAT, 0, scaled)


def without_baseline(signal: Float32[np.ndarray, "C T"], rate: float) -> Float32[np.ndarray, "C T"]:
    """The signal less its median of medians. Beyond the ends it counts as 0, which bends the first and last 0.3 s."""
    from scipy.ndimage import median_filter

    baseline = signal
    for seconds in BASELINE_WINDOWS:
        width = round(seconds * rate) + 1
        baseline = median_filter(baseline, size=(1, width + 1 - width % 2), mode="constant")  # odd: it has a middle
    return signal - baseline


def grey_image(raw: Any) -> Image.Image:
    """A grey picture of 8 bits, from one of any depth."""
    if isinstance(raw, str | PathLike) and Path(raw).suffix.lower() in DICOM_SUFFIXES:
        raw = DicomImage(raw)
    if isinstance(raw, bytes | str | PathLike):
        from collimate.processing.image import open_image

        raw = open_image(raw)
    if isinstance(raw, Image.Image) and raw.mode.startswith("I"):
        raw = np.asarray(raw).astype(np.float64) / (2**16 - 1)
    if isinstance(raw, np.ndarray) and raw.dtype == np.uint16:
        raw = raw.astype(np.float64) / (2**16 - 1)
    if isinstance(raw, np.ndarray) and np.issubdtype(raw.dtype, np.floating):
        if raw.ndim != 2 or not (np.isfinite(raw).all() and raw.min() >= 0 and raw.max() <= 1):
            raise Undecodable("no grey picture", f"an array of {raw.shape}: (H, W) in [0, 1] is expected")
        raw = Image.fromarray(to_bytes(raw.astype(np.float32)))
    image = Image.fromarray(raw) if isinstance(raw, np.ndarray) else raw
    # Not loaded yet, it may be decoded at a smaller scale.
    return image if image.mode == "L" else image.convert("L")
