"""DICOM pictures as Pillow's: decoded late, JPEG 2000 at a smaller scale, and else as they are read at once."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.uid import JPEG2000Lossless

from collimate.data.decoding import Undecodable
from collimate.data.transforms import ImageAugmentation
from collimate_medical.dicom import read_grey
from collimate_medical.dicom_image import DicomImage, decode_dicom
from collimate_medical.processing import XRayProcessor
from tests.medical.dicom_files import picture, written


def smooth(height, width, kind=np.uint16, top=4095):
    """Something without fine detail, from 0 to `top`."""
    rows, columns = np.linspace(0, 5, height)[:, None], np.linspace(0, 4, width)
    return ((np.sin(rows) * np.cos(columns) + 1) * top / 2).astype(kind)


def compressed(pixels, **tags):
    dataset = dcmread(BytesIO(picture(pixels, **tags)))
    dataset.compress(JPEG2000Lossless)
    return written(dataset)


TWELVE = {"BitsStored": 12, "HighBit": 11}


def test_whole_unless_a_smaller_scale_is_asked_for():
    for data in (compressed(smooth(200, 160), **TWELVE), picture(smooth(200, 160), **TWELVE)):
        found = decode_dicom(data)
        assert (found.mode, found.size) == ("L", (160, 200))
        assert np.array_equal(np.asarray(found), read_grey(data))
        assert isinstance(found.resize((20, 25)), Image.Image)


@pytest.mark.parametrize(("kind", "tags"), [(np.uint16, TWELVE), (np.uint8, {}), (np.uint16, {})])
@pytest.mark.parametrize("inverted", [False, True])
def test_a_smaller_scale_is_the_picture_made_smaller(kind, tags, inverted):
    kept = {"PhotometricInterpretation": "MONOCHROME1"} if inverted else {}
    data = compressed(smooth(400, 320, kind, 2 ** tags.get("BitsStored", 8 * kind().itemsize) - 1), **tags, **kept)
    found, whole = DicomImage(data), Image.fromarray(read_grey(data))
    assert found.draft("L", (80, 100)) is not None
    assert found.size == (80, 100)
    wanted = np.asarray(whole.resize((80, 100), Image.Resampling.BOX)).astype(int)
    assert np.abs(np.asarray(found) - wanted).max() <= 6
    assert np.abs(np.asarray(found) - wanted).mean() < 2


def test_the_scale_is_the_smallest_that_is_large_enough():
    data = compressed(smooth(400, 320), **TWELVE)
    for least, size in (((81, 100), (160, 200)), ((80, 101), (160, 200)), ((40, 50), (40, 50)), ((321, 1), (320, 400))):
        found = DicomImage(data)
        found.draft("L", least)
        assert found.size == size
        assert np.asarray(found).shape == size[::-1]


def test_sizes_that_pillow_would_round_otherwise():
    for height in range(257, 261):
        found = DicomImage(compressed(smooth(height, 256), **TWELVE))
        found.draft("L", (60, 60))
        assert found.width in (64, 128)
        assert np.asarray(found).shape == (found.height, found.width)


def test_what_is_signed_or_not_compressed_stays_whole():
    signed = smooth(200, 160, np.int16) - np.int16(500)
    for data in (compressed(signed), picture(smooth(200, 160))):
        found = DicomImage(data)
        found.draft("L", (20, 20))
        assert found.size == (160, 200)
        assert np.array_equal(np.asarray(found), read_grey(data))


def test_a_draft_of_what_is_decoded_changes_nothing():
    found = DicomImage(compressed(smooth(200, 160), **TWELVE))
    found.load()
    assert found.draft("L", (10, 10)) is None
    assert found.size == (160, 200)


def test_a_processor_sees_what_it_would_of_the_whole(tmp_path):
    data = compressed(smooth(640, 512), **TWELVE)
    (tmp_path / "x.dcm").write_bytes(data)
    processor = XRayProcessor(64)
    wanted = processor(read_grey(data)).int()
    for raw in (tmp_path / "x.dcm", decode_dicom(data)):
        assert (processor(raw).int() - wanted).abs().max() <= 4
    augmentation = ImageAugmentation((1.0, 1.0), (0.8, 0.8))
    assert (augmentation(decode_dicom(data), processor).int() - wanted).abs().max() <= 5


def test_damage_is_named_as_the_picture_is_looked_at():
    data = bytearray(compressed(smooth(400, 320), **TWELVE))
    start = data.find(b"\xff\x93")  # where the first tile's data begin
    data[start : start + 2] = b"\xff\x30"
    found = DicomImage(bytes(data))
    found.draft("L", (100, 100))
    with pytest.raises(Undecodable, match="damaged DICOM picture"):
        found.load()


def test_real_streams_at_a_smaller_scale(shared_data):
    looked_at = 0
    for name in ("693_J2KR.dcm", "JPEG2000.dcm", "RG1_J2KI.dcm", "RG3_J2KI.dcm", "US1_J2KI.dcm"):
        path = shared_data / "medical_dicom" / name
        try:
            found = DicomImage(path)
        except Undecodable:
            continue
        full = Image.fromarray(read_grey(path))
        found.draft("L", (full.width // 4, full.height // 4))
        if found.size != full.size:
            wanted = np.asarray(full.resize(found.size, Image.Resampling.BOX)).astype(float)
            assert np.corrcoef(np.asarray(found).ravel(), wanted.ravel())[0, 1] > 0.98, name
            looked_at += 1
    assert looked_at
