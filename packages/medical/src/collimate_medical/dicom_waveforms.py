"""ECGs from DICOM waveforms (PS3.3 A.34.3 and A.34.4), with nothing of whom they show; see `collimate_medical.dicom`.

Shape legend: C leads, T samples of a lead.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from collimate.data.decoding import Undecodable
from collimate_medical.dicom import RawDicom, name_of, open_dicom
from collimate_medical.ecg import ECG, MAX_SAMPLES, MILLIVOLTS, lead_name


def read_dicom_ecg(raw: RawDicom, group: int | None = None) -> ECG:
    """The leads of a waveform in the order of the file, in millivolts.

    Args:
        raw: the bytes of a file, or its path.
        group: which multiplex group; the longest if None, as the others hold averaged beats.

    Raises:
        Undecodable: it is no DICOM file, holds no waveform, or a damaged or too long one, or a lead has no name or no
            unit.
        FileNotFoundError: there is no such file.
        ValueError: there is no such group.
    """
    dataset, name = open_dicom(raw), name_of(raw)
    groups: Any = dataset.get("WaveformSequence")
    if not groups:
        held = "a picture" if "PixelData" in dataset else f"modality {dataset.get('Modality') or 'unknown'}"
        raise Undecodable("no waveform in the DICOM file", f"{name} has no WaveformSequence; it holds {held}")
    lengths = [_length(each, name) for each in groups]
    chosen = int(np.argmax(lengths)) if group is None else group
    if not 0 <= chosen < len(groups):
        raise ValueError(f"{name} has {len(groups)} groups of waveforms, counted from 0; there is no number {group}.")
    channels: Any = groups[chosen].get("ChannelDefinitionSequence") or []
    if lengths[chosen] * max(len(channels), 1) > MAX_SAMPLES:
        raise Undecodable("ECG too long", f"{name}: {lengths[chosen]} samples of {len(channels)} channels")
    if not channels:
        raise Undecodable("damaged DICOM waveform", f"{name} lacks ChannelDefinitionSequence")
    values = _values(dataset, chosen, name) * [_millivolts(each, name) for each in channels]
    leads = tuple(_lead(each, name) for each in channels)
    return ECG(np.ascontiguousarray(values.T.astype(np.float32)), float(groups[chosen].SamplingFrequency), leads)


def _length(group: Any, name: str) -> int:
    length, rate = group.get("NumberOfWaveformSamples"), group.get("SamplingFrequency")
    if not length or not rate:
        raise Undecodable("damaged DICOM waveform", f"{name} lacks NumberOfWaveformSamples or SamplingFrequency")
    return int(length)


def _values(dataset: Any, group: int, name: str) -> np.ndarray:
    """(T, C), in the units of the file."""
    from pydicom.waveforms.numpy_handler import multiplex_array

    try:
        return multiplex_array(dataset, group, as_raw=False)
    except Exception as error:
        raise Undecodable("damaged DICOM waveform", f"{name}: WaveformData: {type(error).__name__}: {error}") from None


def _millivolts(channel: Any, name: str) -> float:
    units: Any = channel.get("ChannelSensitivityUnitsSequence") or []
    unit = str(units[0].get("CodeValue", "")) if len(units) else ""
    if unit.lower() not in MILLIVOLTS:
        raise Undecodable(
            "unknown unit of a DICOM waveform", f"{name}: ChannelSensitivityUnitsSequence is {unit or 'missing'}"
        )
    return MILLIVOLTS[unit.lower()]


def _lead(channel: Any, name: str) -> str:
    sources: Any = channel.get("ChannelSourceSequence") or []
    if not len(sources) or not sources[0].get("CodeMeaning"):
        raise Undecodable("damaged DICOM waveform", f"{name} lacks ChannelSourceSequence, the name of a lead")
    return lead_name(str(sources[0].CodeMeaning))
