"""What `collimate doctor` tries: that compressed DICOM files can be read on this machine."""

from __future__ import annotations

import pydicom
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import JPEG2000, JPEGBaseline8Bit, JPEGLossless, JPEGLSLossless, RLELossless

NEEDED = {"JPEG": JPEGBaseline8Bit, "JPEG 2000": JPEG2000, "RLE": RLELossless}
WITH_GDCM = {"JPEG lossless": JPEGLossless, "JPEG-LS": JPEGLSLossless}


def check() -> str:
    """Look for a decoder of each compression that archives use; some need a library that is not installed for all."""
    if lacking := [name for name, syntax in NEEDED.items() if not get_decoder(syntax).is_available]:
        raise RuntimeError(f"pydicom finds no decoder for {', '.join(lacking)}")
    optional = [name for name, syntax in WITH_GDCM.items() if not get_decoder(syntax).is_available]
    note = f"; for {' and '.join(optional)} install python-gdcm" if optional else ""
    return f"pydicom {pydicom.__version__}{note}"
