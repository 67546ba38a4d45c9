"""X-rays from DICOM files: stored numbers to a picture as it is meant to be seen, and nothing of whom it shows.

In the order of the standard (DICOM PS3.3 C.11 and C.7.6.3.1.2):

    stored value -> modality LUT, or slope and intercept -> VOI LUT, or else window, or else nothing
    -> v -> max - v where it is MONOCHROME1 -> [0, 1] by the smallest and the largest value

Only the tags in `READ`, and in sequences those in `READ_WITHIN`, are ever kept of a file: names, numbers, dates,
private tags and unique identifiers are passed over, so that no sample, message or report can hold them. Messages name a
file by the last part of its path.

A picture that would be larger than `MAX_PIXELS` is refused before it is decoded, also where a compressed picture is
larger than its header says.

Shape legend: H W pixels.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32, Shaped, UInt8

from collimate.data.decoding import MAX_PIXELS, Undecodable

if TYPE_CHECKING:
    from pydicom import Dataset

READ = (
    "BitsAllocated",
    "BitsStored",
    "BurnedInAnnotation",
    "Columns",
    "HighBit",
    "Modality",
    "ModalityLUTSequence",
    "NumberOfFrames",
    "PhotometricInterpretation",
    "PixelData",
    "PixelRepresentation",
    "PlanarConfiguration",
    "RescaleIntercept",
    "RescaleSlope",
    "Rows",
    "SamplesPerPixel",
    "VOILUTFunction",
    "VOILUTSequence",
    "ViewPosition",
    "WaveformSequence",
    "WindowCenter",
    "WindowWidth",
)
"""The tags that are read of a file; none of them tells who it is of, or where and when it was made."""

READ_WITHIN = (
    "ChannelBaseline",
    "ChannelDefinitionSequence",
    "ChannelSensitivity",
    "ChannelSensitivityCorrectionFactor",
    "ChannelSensitivityUnitsSequence",
    "ChannelSourceSequence",
    "CodeMeaning",
    "CodeValue",
    "LUTData",
    "LUTDescriptor",
    "NumberOfWaveformChannels",
    "NumberOfWaveformSamples",
    "SamplingFrequency",
    "WaveformBitsAllocated",
    "WaveformBitsStored",
    "WaveformData",
    "WaveformPaddingValue",
    "WaveformSampleInterpretation",
)
"""The tags that are kept within sequences, of tables and waveforms; labels and explanations are free text."""

GREYS = ("MONOCHROME1", "MONOCHROME2")
DEPTHS = range(1, 17)  # bits of a table's entries

_NEEDED = ("Rows", "Columns", "BitsStored", "BitsAllocated", "PixelRepresentation", "PhotometricInterpretation")

RawDicom = bytes | str | PathLike[str]


def read_dicom(raw: RawDicom, window: int = 0) -> Float32[np.ndarray, "H W"]:
    """A grey picture as it is meant to be seen, from 0, black, to 1, white.

    Args:
        raw: the bytes of a file, or its path.
        window: which of the file's VOI LUTs, or windows where it has none of those.

    Returns:
        zeros where all pixels are equal.

    Raises:
        Undecodable: it is no DICOM file, is cut short, holds no picture or several, one in colour, one that is too
            large, or one whose compression no installed package reads.
        FileNotFoundError: there is no such file.
    """
    dataset, name = open_dicom(raw), name_of(raw)
    return _through(stored_values(dataset, name), lambda values: _shown(values, dataset, window, name), dataset)


def read_grey(raw: RawDicom, window: int = 0) -> UInt8[np.ndarray, "H W"]:
    """`read_dicom` in 256 steps, rounded, without a copy of the picture in real numbers."""
    dataset, name = open_dicom(raw), name_of(raw)
    return shown_grey(stored_values(dataset, name), dataset, window, name)


def shown_grey(
    values: Shaped[np.ndarray, "H W"], dataset: Dataset, window: int = 0, name: str = "a DICOM file"
) -> UInt8[np.ndarray, "H W"]:
    """Stored values of a file as they are seen, in 256 steps; see `read_grey`."""
    return _through(values, lambda each: to_bytes(_shown(each, dataset, window, name)), dataset)


def to_bytes(picture: Float32[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W"]:
    """A picture from 0 to 1 in 256 steps, rounded."""
    return np.rint(picture * 255).astype(np.uint8)


def open_dicom(raw: RawDicom) -> Dataset:
    """A data set that has the tags of `READ` and its transfer syntax, and no others.

    Raises:
        Undecodable: it is no DICOM file, or ends within a tag.
        FileNotFoundError: there is no such file.
    """
    from pydicom import config, dcmread
    from pydicom.errors import InvalidDicomError

    name = name_of(raw)
    if not isinstance(raw, bytes) and not Path(raw).is_file():
        raise FileNotFoundError(f"There is no DICOM file {name}.")
    try:
        # Values are not checked: a warning about one would print it.
        with _quiet(), config.disable_value_validation():
            dataset = dcmread(io.BytesIO(raw) if isinstance(raw, bytes) else fspath(raw), specific_tags=list(READ))
            _forget_the_rest(dataset)
    except InvalidDicomError:
        raise Undecodable("not a DICOM file", f"{name} lacks the mark DICM after 128 bytes") from None
    except Exception as error:  # whatever a cut or damaged file makes the parser raise; it may quote values
        raise Undecodable("damaged DICOM file", f"{name}: {type(error).__name__} while it was parsed") from None
    return dataset


def stored_values(dataset: Dataset, name: str = "a DICOM file") -> Shaped[np.ndarray, "H W"]:
    """The numbers as they are stored, decompressed; integers of the file's own sign.

    Args:
        dataset: of `open_dicom`.
        name: what messages call the file.

    Raises:
        Undecodable: see `read_dicom`.
    """
    check_picture(dataset, name)
    try:
        with _quiet():
            pixels = dataset.pixel_array
    except Exception as error:
        raise Undecodable(*_refusal(dataset, name, error)) from None
    if pixels.shape != (dataset.Rows, dataset.Columns):
        raise Undecodable("damaged DICOM picture", f"{name}: Rows and Columns do not fit the picture")
    return pixels


def check_picture(dataset: Dataset, name: str) -> None:
    """Refuse what is no single grey picture of a bearable size, before it is decoded.

    Raises:
        Undecodable: see `read_dicom`.
    """
    if "PixelData" not in dataset:
        held = "a waveform" if "WaveformSequence" in dataset else f"modality {dataset.get('Modality') or 'unknown'}"
        raise Undecodable("no picture in the DICOM file", f"{name} has no PixelData: it holds {held}, or is cut short")
    if lacking := [tag for tag in _NEEDED if dataset.get(tag) is None]:
        raise Undecodable("damaged DICOM file", f"{name} lacks {', '.join(lacking)}")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames > 1:
        raise Undecodable(
            "several frames in the DICOM file", f"{name}: NumberOfFrames is {frames}; write the one you mean to a file"
        )
    if int(dataset.get("SamplesPerPixel") or 1) != 1 or dataset.PhotometricInterpretation not in GREYS:
        raise Undecodable(
            "DICOM picture in colour",
            f"{name}: PhotometricInterpretation is {dataset.PhotometricInterpretation}, of which X-rays have "
            f"{' or '.join(GREYS)}",
        )
    _check_size(dataset.Columns, dataset.Rows, name)
    _check_stream(dataset, name)


def is_jpeg2000(dataset: Dataset) -> bool:
    """Whether the picture is a JPEG 2000 stream, of either kind and with or without parts beyond it."""
    return dataset.file_meta.get("TransferSyntaxUID", "").startswith("1.2.840.10008.1.2.4.9")


def modality_values(
    values: Shaped[np.ndarray, "H W"], dataset: Dataset, name: str = "a DICOM file"
) -> Shaped[np.ndarray, "H W"]:
    """Stored values as the quantity they stand for: by the file's table, or by its slope and intercept (float64)."""
    if dataset.get("ModalityLUTSequence"):
        return _looked_up(values, dataset, "ModalityLUTSequence", 0, name)
    slope, intercept = dataset.get("RescaleSlope"), dataset.get("RescaleIntercept")
    if slope is None or intercept is None:
        return values
    try:
        return values.astype(np.float64) * float(slope) + float(intercept)
    except (TypeError, ValueError):
        raise Undecodable("damaged DICOM tag", f"{name}: RescaleSlope or RescaleIntercept is no number") from None


def windowed(
    values: Shaped[np.ndarray, "H W"], dataset: Dataset, window: int = 0, name: str = "a DICOM file"
) -> Shaped[np.ndarray, "H W"]:
    """What of the quantity is shown: by a table of the file, else by a window of it, else all of it."""
    if dataset.get("VOILUTSequence"):
        return _looked_up(values, dataset, "VOILUTSequence", window, name)
    return apply_window(values, dataset, window, name)


def apply_window(
    values: Shaped[np.ndarray, "H W"], dataset: Dataset, window: int = 0, name: str = "a DICOM file"
) -> Shaped[np.ndarray, "H W"]:
    """A window of the file: LINEAR, LINEAR_EXACT or SIGMOID; into the range of the stored bits, after the slope.

    Raises:
        Undecodable: the window is no window.
        ValueError: there is no such window.
    """
    from pydicom.pixels.processing import apply_windowing

    if dataset.get("WindowCenter") is None or dataset.get("WindowWidth") is None:
        return values
    _check_choice(window, min(dataset[tag].VM for tag in ("WindowCenter", "WindowWidth")), "windows", name)
    try:
        return apply_windowing(values, dataset, index=window)
    except (ValueError, TypeError) as error:
        raise Undecodable("damaged DICOM window", f"{name}: WindowCenter, WindowWidth: {error}") from None


def to_unit(values: Shaped[np.ndarray, "H W"]) -> Float32[np.ndarray, "H W"]:
    """Values from the smallest, 0, to the largest, 1; zeros where all are equal."""
    values = values.astype(np.float64)
    low, high = values.min(), values.max()
    return ((values - low) / (high - low) if high > low else np.zeros_like(values)).astype(np.float32)


def name_of(raw: RawDicom) -> str:
    """What messages call a file: the last part of its path, as folders may be named by patients."""
    return f"{len(raw)} bytes" if isinstance(raw, bytes) else Path(raw).name


# Levels -----------------------------------------------------------------------------------------------------------


def _shown(values: Shaped[np.ndarray, "H W"], dataset: Dataset, window: int, name: str) -> Float32[np.ndarray, "H W"]:
    """Stored values as they are seen."""
    seen = windowed(modality_values(values, dataset, name), dataset, window, name)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        seen = seen.max() - seen
    return to_unit(seen)


def _through(pixels: Shaped[np.ndarray, "H W"], shown: Callable[[np.ndarray], np.ndarray], dataset: Dataset) -> Any:
    """What is shown of each pixel, worked out once for each value that pixels have: a picture has few of them.

    Args:
        pixels: integers; of more than 16 bits, each is worked out by itself.
        shown: of an array (1, n) of such values; what becomes of each depends on it and on their extremes alone.
        dataset: whose tables may send values between the smallest and the largest beyond what becomes of these two.
    """
    if pixels.dtype.itemsize > 2:
        return shown(pixels)
    places = pixels.view(f"u{pixels.dtype.itemsize}")  # negative values become large places
    if dataset.get("ModalityLUTSequence") or dataset.get("VOILUTSequence"):
        occurs = np.zeros(2**16, bool)
        for rows in _some_rows(places):
            occurs[places[rows]] = True
        values = np.flatnonzero(occurs).astype(places.dtype).view(pixels.dtype)
    else:
        values = np.arange(int(pixels.min()), int(pixels.max()) + 1).astype(pixels.dtype)
    seen = shown(values[None])[0]
    table = np.zeros(2**16, seen.dtype)
    table[values.view(places.dtype)] = seen
    found = np.empty(pixels.shape, seen.dtype)
    for rows in _some_rows(places):
        np.take(table, places[rows], out=found[rows], mode="clip")  # which needs no copy of what it finds
    return found


def _some_rows(pixels: np.ndarray) -> Iterator[slice]:
    """A few rows at a time: indices are eight bytes each."""
    step = max(1, 2**18 // max(pixels.shape[1], 1))
    yield from (slice(first, first + step) for first in range(0, len(pixels), step))


# Parsing ----------------------------------------------------------------------------------------------------------


def _forget_the_rest(dataset: Any) -> None:
    """Leave out what the parser could not pass over: the file's own header and path, and what lies in sequences."""
    for element in list(dataset.file_meta):
        if element.keyword != "TransferSyntaxUID":
            del dataset.file_meta[element.tag]
    dataset.preamble, dataset.filename = None, ""
    _keep(dataset, READ)


def _keep(dataset: Any, keywords: tuple[str, ...]) -> None:
    for tag in list(dataset.keys()):
        element = dataset[tag]
        if element.keyword not in keywords:
            del dataset[tag]
        elif element.VR == "SQ":
            for item in element.value:
                _keep(item, READ_WITHIN)


def _check_size(width: int, height: int, name: str) -> None:
    if width * height > MAX_PIXELS:
        raise Undecodable("decompression bomb", f"{name}: {width} x {height}, at most {MAX_PIXELS} pixels are taken")
    if not width * height:
        raise Undecodable("damaged DICOM file", f"{name}: Rows or Columns is 0")


def _check_stream(dataset: Dataset, name: str) -> None:
    """The size that a JPEG 2000 stream itself states: its decoder believes that, and not the header."""
    data = bytes(dataset.PixelData)
    start = data.find(b"\xff\x4f\xff\x51")  # SOC, SIZ: ISO 15444-1 A.5.1
    if not is_jpeg2000(dataset) or start < 0:
        return
    right, bottom, left, top = (int.from_bytes(data[start + at : start + at + 4], "big") for at in (8, 12, 16, 20))
    _check_size(max(right - left, 0), max(bottom - top, 0), name)


def _refusal(dataset: Dataset, name: str, error: Exception) -> tuple[str, str]:
    """Why a picture could not be decoded: nothing installed reads its compression, or it is damaged."""
    from pydicom.pixels.decoders.base import get_decoder

    syntax = dataset.file_meta.get("TransferSyntaxUID")
    if syntax is None:
        return "damaged DICOM file", f"{name} lacks TransferSyntaxUID"
    try:
        ready = get_decoder(syntax).is_available
    except NotImplementedError:
        return "unknown DICOM compression", f"{name}: TransferSyntaxUID is {syntax.name}, which is none of a picture"
    if not ready:
        return (
            "unreadable DICOM compression",
            f"{name}: TransferSyntaxUID is {syntax.name}: install python-gdcm, or decompress the file",
        )
    reason = "truncated DICOM picture" if "less than expected" in str(error) else "damaged DICOM picture"
    return reason, f"{name}: PixelData, {syntax.name}: {type(error).__name__}: {error}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Without warnings, which quote what they warn of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# Tables -----------------------------------------------------------------------------------------------------------


def _looked_up(
    values: Shaped[np.ndarray, "H W"], dataset: Dataset, sequence: str, number: int, name: str
) -> Shaped[np.ndarray, "H W"]:
    """Values through a table: those below its first one take its first entry, those above its last one the last.

    Here because pydicom takes no modality LUT of 9 to 15 bits.
    """
    items: Any = dataset[sequence].value
    _check_choice(number, len(items), sequence, name)
    descriptor, data = items[number].get("LUTDescriptor"), items[number].get("LUTData")
    if descriptor is None or data is None or len(descriptor) != 3 or int(descriptor[2]) not in DEPTHS:
        raise Undecodable(
            "damaged DICOM table", f"{name}: {sequence} needs LUTDescriptor, of three numbers, and LUTData"
        )
    count, first = int(descriptor[0]) or 2**16, int(descriptor[1])
    if first >= 2**15 and (values.min() < 0 or dataset.PixelRepresentation == 1):
        first -= 2**16  # read as unsigned, where the values that it counts from are signed
    table = _entries(data, count, dataset.file_meta.TransferSyntaxUID.is_little_endian)
    if len(table) < count:
        raise Undecodable("damaged DICOM table", f"{name}: {sequence}: {len(table)} of {count} entries of LUTData")
    return table[np.clip(np.floor(values).astype(np.int64) - first, 0, count - 1)]


def _entries(data: Any, count: int, little: bool) -> Shaped[np.ndarray, " entries"]:
    if not isinstance(data, bytes):
        return np.atleast_1d(np.asarray(data, np.uint16))
    kind = "u1" if len(data) < 2 * count else "<u2" if little else ">u2"
    return np.frombuffer(data[: len(data) // np.dtype(kind).itemsize * np.dtype(kind).itemsize], kind)


def _check_choice(number: int, count: int, what: str, name: str) -> None:
    if not 0 <= number < count:
        raise ValueError(f"{name} has {count} {what}, counted from 0; there is no number {number}.")
