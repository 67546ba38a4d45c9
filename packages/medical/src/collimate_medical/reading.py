"""X-rays and ECGs as samples hold them: which keys, which decoders; and ECGs from whatever holds one.

| key | holds |
|---|---|
| `dcm` | a DICOM picture; for methods that see an `image`, too |
| `ecg.dcm` | a DICOM waveform |
| `ecg.npz` | what `encode_ecg` writes: `signal` (C, T) in millivolts, `rate`, `leads` |
| `ecg.npy` | an array (12, T) or (T, 12) in millivolts, of whose rate the processor must be told |

WFDB records, which are several files each, become `ecg.npz` as they are read (`collimate_medical.records`).

Shape legend: C leads, T samples of a lead.
"""

from __future__ import annotations

import io
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from collimate.data.decoding import (
    IMAGES,
    Undecodable,
    decode_array,
    register_decoder,
    register_modality,
)
from collimate_medical.dicom_image import decode_dicom
from collimate_medical.dicom_waveforms import read_dicom_ecg
from collimate_medical.ecg import ECG, LEADS, lead_name
from collimate_medical.wfdb_records import read_wfdb

ECGS = ("ecg.npz", "ecg.npy", "ecg.dcm")
"""Under which keys of a sample an ECG may lie."""

LARGEST_USUAL = 20.0  # ours, in mV: half of an ECG's samples never lie above it; they do in microvolts

RawECG = Any
"""An `ECG`; the path of a WFDB record or of a .dcm, .npz or .npy file; an array (12, T) or (T, 12) in millivolts, or
one with its rate."""


def read_ecg(raw: RawECG, array_rate: float | None = None) -> ECG:
    """Whatever holds an ECG, as one.

    Args:
        raw: see `RawECG`.
        array_rate: samples a second of an array that comes without. Its leads are those of `LEADS`.

    Raises:
        Undecodable: it is damaged, or no ECG.
        ValueError: an array has no rate, or there are two that differ.
        TypeError: it is nothing that holds an ECG.
        FileNotFoundError: there is no such file.
    """
    if isinstance(raw, str | PathLike):
        raw = _read_file(Path(raw))
    if isinstance(raw, ECG):
        return raw
    rate: Any = None
    if isinstance(raw, tuple) and len(raw) == 2:
        raw, rate = raw
        if array_rate is not None and float(rate) != array_rate:
            raise ValueError(
                f"The array comes with {float(rate):g} Hz, and array_rate is {array_rate:g}: leave array_rate out "
                "where arrays know their rate."
            )
    if not isinstance(raw, np.ndarray):
        raise TypeError(f"Expected an ECG, a path, or an array with its rate; got a {type(raw).__name__}.")
    rate = array_rate if rate is None else rate
    if rate is None:
        raise ValueError("An array does not tell its rate: give (array, rate), or set array_rate, in Hz.")
    return ECG(_leads_first(raw), float(rate))


def encode_ecg(ecg: ECG) -> bytes:
    """An ECG as the bytes of `ecg.npz`: equal bytes for equal ECGs."""
    file = io.BytesIO()
    np.savez_compressed(file, signal=ecg.signal, rate=np.float64(ecg.rate), leads=np.array(ecg.leads))
    return file.getvalue()


def decode_ecg(data: bytes) -> ECG:
    """What `encode_ecg` wrote.

    Raises:
        Undecodable: it is damaged, or something else.
    """
    arrays = decode_array(data)
    if not isinstance(arrays, dict) or not {"signal", "rate", "leads"} <= arrays.keys():
        raise Undecodable("no ECG in the array file", "it needs `signal`, `rate` and `leads`")
    signal, rate, leads = (arrays[name] for name in ("signal", "rate", "leads"))
    if rate.size != 1 or not np.issubdtype(rate.dtype, np.number) or not np.issubdtype(signal.dtype, np.floating):
        raise Undecodable("no ECG in the array file", "`rate` is one number, and `signal` real numbers in millivolts")
    return ECG(signal.astype(np.float32), float(rate.item()), tuple(lead_name(str(name)) for name in leads))


def _read_file(path: Path) -> ECG | np.ndarray:
    suffix = path.suffix.lower()
    if suffix not in (".dcm", ".npz", ".npy"):
        return read_wfdb(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no ECG {path.name}.")
    if suffix == ".dcm":
        return read_dicom_ecg(path)
    if suffix == ".npz":
        return decode_ecg(path.read_bytes())
    array = decode_array(path.read_bytes())
    assert isinstance(array, np.ndarray)
    return array


def _leads_first(array: np.ndarray) -> np.ndarray:
    """(12, T) float32 in millivolts."""
    if array.ndim != 2 or len(LEADS) not in array.shape:
        raise Undecodable("no twelve leads in the array", f"(12, T) or (T, 12) is expected, not {array.shape}")
    if array.shape[0] == array.shape[1]:
        raise Undecodable("leads or samples first?", f"an array of {array.shape} does not tell")
    if not np.issubdtype(array.dtype, np.floating):
        raise Undecodable(
            "ECG in counts", f"an array of {array.dtype} is in no unit: divide by the gain, to millivolts"
        )
    found = np.ascontiguousarray(array if array.shape[0] == len(LEADS) else array.T, dtype=np.float32)
    found = np.where(np.isfinite(found), found, np.float32(np.nan))
    if np.isfinite(found).any() and np.nanmedian(np.abs(found)) > LARGEST_USUAL:
        raise Undecodable("ECG not in millivolts", "half of its samples are above 20: divide microvolts by 1000")
    return found


register_decoder(decode_dicom, "dcm")
register_decoder(read_dicom_ecg, "ecg.dcm")
register_decoder(decode_ecg, "ecg.npz")
register_modality("xray", "dcm", *IMAGES)
register_modality("image", "dcm")
register_modality("ecg", *ECGS)
