"""DICOM pictures as Pillow's: decoded when they are looked at, JPEG 2000 at a smaller scale where that suffices.

A wavelet stream holds a picture at halves, quarters, eighths of its size (ISO 15444-1 F.3). Where a tower sees 224
pixels of 2500, a quarter is all that is needed, and its decoding takes a tenth of the time. The picture is then that
of `read_grey`, less fine noise, and up to half a pixel of its own further to the left and up; without a window, the
smallest and the largest value are those of the smaller scale. As with Pillow's JPEGs, `draft` asks for it; the whole
picture comes unless it is asked for.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from jaxtyping import Shaped
from PIL import Image, features
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile

from collimate.data.decoding import Undecodable
from collimate_medical.dicom import (
    RawDicom,
    check_picture,
    is_jpeg2000,
    name_of,
    open_dicom,
    shown_grey,
    stored_values,
)

_SIZ, _COD, _TILE = b"\xff\x51", b"\xff\x52", b"\xff\x90"
"""Markers of a stream: its size, its coding, its first tile (ISO 15444-1 A.5.1, A.6.1, A.4.2)."""


def decode_dicom(data: bytes) -> DicomImage:
    """A grey picture of 8 bits, for methods that take pictures of any kind."""
    return DicomImage(data)


class DicomImage(Image.Image):
    """A grey picture of 8 bits, of which nothing is decoded before it is needed; see `read_dicom` for how it is seen.

    Args:
        raw: the bytes of a file, or its path.
        window: which of the file's VOI LUTs, or windows where it has none of those.

    Raises:
        Undecodable: as `read_dicom`; what its pixels alone can tell as they are decoded.
        FileNotFoundError: there is no such file.
    """

    format = "DICOM"

    def __init__(self, raw: RawDicom, window: int = 0) -> None:
        super().__init__()
        self._name, self._window = name_of(raw), window
        dataset: Any = open_dicom(raw)
        check_picture(dataset, self._name)
        self._dataset: Any = dataset
        self._full, self._halvings = (int(dataset.Columns), int(dataset.Rows)), 0
        self._mode, self._size = "L", self._full

    def draft(self, mode: str | None, size: tuple[int, int] | None) -> tuple[str, tuple[int, int, float, float]] | None:
        """Decode a smaller scale of a JPEG 2000 picture that still has at least this size; others stay whole.

        Args:
            mode: not looked at: the picture is grey.
            size: the least width and height in pixels.
        """
        if self._dataset is None or size is None or not _is_plain(self._dataset):
            return None
        self._halvings = halvings(_stream(self._dataset), self._full, size)
        self._size = _at_scale(self._full, self._halvings)
        return "L", (0, 0, float(self.width), float(self.height))

    def load(self) -> Any:
        if self._dataset is not None:
            values = self._reduced() if self._halvings else stored_values(self._dataset, self._name)
            self.im = Image.fromarray(shown_grey(values, self._dataset, self._window, self._name)).im
            self._size, self._dataset = self.im.size, None
        return super().load()

    def _reduced(self) -> Shaped[np.ndarray, "h w"]:
        """Stored values at the smaller scale."""
        picture: Any = Jpeg2KImageFile(io.BytesIO(_stream(self._dataset)))
        picture.reduce = self._halvings
        try:
            values = np.asarray(picture)
        except (OSError, ValueError) as error:
            raise Undecodable("damaged DICOM picture", f"{self._name}: PixelData: {error}") from None
        # Pillow fills bytes, or 16 bits, from above.
        return values >> (8 * values.dtype.itemsize - int(self._dataset.BitsStored))


def halvings(stream: bytes, full: tuple[int, int], least: tuple[int, int]) -> int:
    """How often a JPEG 2000 picture can be halved and still has at least so many pixels each way.

    Pillow rounds a halved size to the nearest, the standard rounds it up: where they differ, it is halved less often.

    Args:
        stream: the picture, compressed.
        full, least: width and height.
    """
    cod = stream.find(_COD, 0, stream.find(_TILE))
    levels = stream[cod + 9] if cod >= 0 else 0  # of the wavelet transform
    for count in range(levels, 0, -1):
        width, height = _at_scale(full, count)
        if width >= least[0] and height >= least[1] and all(_rounds_up(side, count) for side in full):
            return count
    return 0


def _is_plain(dataset: Any) -> bool:
    """Whether Pillow decodes it to what pydicom does: one unsigned component of the stored bits, which begins at 0."""
    if not is_jpeg2000(dataset) or dataset.PixelRepresentation != 0 or not features.check("jpg_2000"):
        return False
    stream = _stream(dataset)
    siz = stream.find(_SIZ)
    expected = bytes(8), b"\0\1", int(dataset.BitsStored) - 1
    return siz >= 0 and (stream[siz + 14 : siz + 22], stream[siz + 38 : siz + 40], stream[siz + 40]) == expected


def _at_scale(size: tuple[int, int], count: int) -> tuple[int, int]:
    """A size that is halved so many times, rounded up."""
    return -(-size[0] >> count), -(-size[1] >> count)


def _rounds_up(side: int, count: int) -> bool:
    return (side + (1 << count >> 1)) >> count == -(-side >> count)


def _stream(dataset: Any) -> bytes:
    """The compressed picture, which may lie in several pieces."""
    from pydicom.encaps import get_frame

    return get_frame(bytes(dataset.PixelData), 0, number_of_frames=1)
