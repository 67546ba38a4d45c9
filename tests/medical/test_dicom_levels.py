"""Pictures through a table of their levels: the same as pixel by pixel, whatever the file says, in little memory."""

import tracemalloc

import numpy as np
import pytest
from pydicom import Dataset

from collimate_medical.dicom import modality_values, open_dicom, read_dicom, read_grey, stored_values, to_unit, windowed
from tests.medical.dicom_files import picture


def pixel_by_pixel(data):
    dataset = open_dicom(data)
    values = windowed(modality_values(stored_values(dataset), dataset), dataset)
    return to_unit(values.max() - values if dataset.PhotometricInterpretation == "MONOCHROME1" else values)


def table(entries, first, bits=16):
    item = Dataset()
    item.LUTDescriptor, item.LUTData = [len(entries), first, bits], np.asarray(entries, "<u2").tobytes()
    return [item]


WAVE = [abs(900 - (37 * place) % 1800) for place in range(300)]  # up and down: its extremes lie between the ends

CASES = {
    "bytes": (np.uint8, {}),
    "unsigned": (np.uint16, {}),
    "signed": (np.int16, {"RescaleSlope": 2.5, "RescaleIntercept": -1024}),
    "falling slope": (np.uint16, {"RescaleSlope": -0.5, "RescaleIntercept": 7}),
    "window": (np.uint16, {"WindowCenter": 120, "WindowWidth": 60}),
    "sigmoid": (np.int16, {"WindowCenter": 50, "WindowWidth": 80, "VOILUTFunction": "SIGMOID"}),
    "inverted": (np.uint16, {"PhotometricInterpretation": "MONOCHROME1", "WindowCenter": 120, "WindowWidth": 200}),
    "table": (np.uint16, {"VOILUTSequence": table(WAVE, 10), "PhotometricInterpretation": "MONOCHROME1"}),
    "two tables": (np.uint16, {"ModalityLUTSequence": table(WAVE, 0), "VOILUTSequence": table(WAVE, 20)}),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_the_picture_pixel_by_pixel(case):
    kind, tags = CASES[case]
    rng = np.random.default_rng(0)
    low = -200 if np.dtype(kind).kind == "i" else 3
    pixels = rng.choice(np.unique(rng.integers(low, 250, 90)), (70, 90)).astype(kind)  # with values that are missing
    data = picture(pixels, **tags)
    wanted = pixel_by_pixel(data)
    assert (wanted.min(), wanted.max()) == (0, 1)
    assert np.array_equal(read_dicom(data), wanted)
    assert np.array_equal(read_grey(data), np.rint(wanted * 255).astype(np.uint8))


def test_extremes_of_the_type_and_pictures_of_one_value():
    ends = np.array([[-(2**15), 2**15 - 1], [0, -1]], np.int16)
    data = picture(ends)
    assert np.array_equal(read_dicom(data), pixel_by_pixel(data))
    assert (read_dicom(picture(np.full((3, 4), 9, np.uint16))) == 0).all()
    assert (read_grey(picture(np.full((3, 4), 9, np.uint8))) == 0).all()


def test_no_copy_in_real_numbers():
    """Beside the stored picture and the file, hardly more than the bytes of the result."""
    pixels = np.random.default_rng(0).integers(0, 4096, (1500, 1200), dtype=np.uint16)
    data = picture(pixels, WindowCenter=2048, WindowWidth=3000)
    read_grey(data)  # what is imported at first
    tracemalloc.start()
    try:
        found = read_grey(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.dtype == np.uint8
    assert peak < 4 * pixels.nbytes  # pydicom holds the file's bytes and the picture; in float64 it would be 16
