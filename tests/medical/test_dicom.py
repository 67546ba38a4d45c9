"""DICOM pictures and waveforms: what is read, what is refused and why, and that nobody can be told from it."""

import logging
import warnings

import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset

from collimate.data.decoding import MAX_PIXELS, Undecodable, decode, extensions_of
from collimate_medical.dicom import READ, READ_WITHIN, open_dicom, read_dicom, stored_values
from collimate_medical.dicom_image import decode_dicom
from collimate_medical.dicom_waveforms import read_dicom_ecg
from collimate_medical.processing import XRayProcessor
from tests.medical.dicom_files import SECRETS, picture, waveform

RAMP = np.arange(12 * 16, dtype=np.uint16).reshape(12, 16)


def reason(raw, read=read_dicom):
    with pytest.raises(Undecodable) as caught:
        read(raw)
    assert not any(secret in str(caught.value) for secret in SECRETS)
    return str(caught.value)


# Pictures ---------------------------------------------------------------------------------------------------------


def test_a_ramp_runs_from_black_to_white():
    found = read_dicom(picture(RAMP))
    np.testing.assert_allclose(found, RAMP / RAMP.max(), atol=1e-6)
    inverted = read_dicom(picture(RAMP, PhotometricInterpretation="MONOCHROME1"))
    np.testing.assert_allclose(inverted, 1 - found, atol=1e-6)


@pytest.mark.parametrize(("kind", "bits"), [(np.uint8, 8), (np.uint16, 12), (np.uint16, 16), (np.int16, 16)])
def test_depths_and_signs(kind, bits):
    pixels = np.linspace(np.iinfo(kind).min if kind is np.int16 else 0, 2 ** (bits - (kind is np.int16)) - 1, 64)
    pixels = pixels.astype(kind).reshape(8, 8)
    found = read_dicom(picture(pixels, BitsStored=bits, HighBit=bits - 1))
    assert found.dtype == np.float32
    assert found.min() == 0
    assert found.max() == 1
    assert (np.diff(found.ravel()) > 0).all()


def test_the_window_that_is_asked_for():
    file = picture(RAMP, WindowCenter=[50, 150], WindowWidth=[20, 20])
    first, second = read_dicom(file), read_dicom(file, window=1)
    assert (first[RAMP > 60] == 1).all()
    assert (second[RAMP < 140] == 0).all()
    with pytest.raises(ValueError, match="2 windows, counted from 0; there is no number 2"):
        read_dicom(file, window=2)


def test_a_slope_comes_before_the_window():
    file = picture(RAMP, RescaleSlope="2", RescaleIntercept="-100", WindowCenter=0, WindowWidth=100)
    found = read_dicom(file)
    values = RAMP * 2.0 - 100
    assert (found[values <= -50] == 0).all()
    assert (found[values >= 50] == 1).all()


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_a_modality_table_of_any_depth(bits):
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [RAMP.size, 0, bits])
    item.add_new("LUTData", "US", [(RAMP.size - place) % 2**bits for place in range(RAMP.size)])
    found = read_dicom(picture(RAMP, ModalityLUTSequence=[item]))
    np.testing.assert_allclose(found, 1 - RAMP / RAMP.max(), atol=1e-6)


def test_a_constant_picture_is_black():
    assert not read_dicom(picture(np.full((8, 8), 7, np.uint16))).any()


def test_it_is_a_picture_for_every_method():
    file = picture(RAMP)
    assert "dcm" in extensions_of("image")
    assert extensions_of("xray")[0] == "dcm"
    found = decode("dcm", file)
    assert isinstance(found, Image.Image)
    assert (found.mode, found.size) == ("L", (16, 12))
    assert XRayProcessor(8)(found).shape == (3, 8, 8)


def test_sixteen_bits_are_scaled_and_not_cut_off(tmp_path):
    deep = (np.linspace(0, 65535, 64 * 64).reshape(64, 64)).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    (tmp_path / "deep.dcm").write_bytes(picture(deep))
    processor = XRayProcessor(64)
    for raw in (tmp_path / "deep.png", tmp_path / "deep.dcm", deep, Image.open(tmp_path / "deep.png"), deep / 65535):
        found = processor(raw)[0].numpy().astype(int)
        assert np.abs(found - deep // 257).max() <= 1
    with pytest.raises(Undecodable, match=r"\(H, W\) in \[0, 1\]"):
        processor(np.full((4, 4), 2.0))


# What is refused --------------------------------------------------------------------------------------------------


def test_cut_short():
    file = picture(np.zeros((64, 64), np.uint16))
    assert "truncated DICOM picture" in reason(file[:-100])
    assert "no PixelData: it holds modality unknown, or is cut short" in reason(file[:200])
    assert "lacks the mark DICM" in reason(b"\x89PNG" + bytes(300))


def test_what_is_no_single_grey_picture():
    assert "NumberOfFrames is 3" in reason(picture(RAMP, NumberOfFrames=3))
    assert "PhotometricInterpretation is RGB" in reason(picture(RAMP, PhotometricInterpretation="RGB"))
    assert "lacks Rows" in reason(picture(RAMP, Rows=None))
    assert "has no PixelData" in reason(picture(RAMP, PixelData=None))


def test_too_large_a_picture_is_refused_before_it_is_decoded():
    assert f"at most {MAX_PIXELS} pixels" in reason(picture(RAMP, Rows=60000, Columns=60000))


def test_a_stream_that_is_larger_than_its_header_says():
    siz = b"\xff\x4f\xff\x51" + bytes(4) + (10**5).to_bytes(4, "big") * 2 + bytes(8)
    opened = open_dicom(picture(RAMP))
    opened.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.90"
    opened.PixelData = siz
    with pytest.raises(Undecodable, match="100000 x 100000"):
        stored_values(opened)


def test_the_wrong_or_an_unreadable_compression():
    opened = open_dicom(picture(RAMP))
    opened.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.70"
    with pytest.raises(Undecodable, match=r"JPEG Lossless.*install python-gdcm"):
        stored_values(opened)
    opened.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.90"  # it is not: the pixels are plain
    with pytest.raises(Undecodable, match=r"damaged DICOM picture.*JPEG 2000"):
        stored_values(opened)


def test_a_missing_file_is_named_without_its_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no DICOM file x\.dcm\.$"):
        read_dicom(tmp_path / "patient 12" / "x.dcm")


# Privacy ----------------------------------------------------------------------------------------------------------


def keywords(dataset):
    for element in dataset:
        yield element.keyword
        if element.VR == "SQ":
            for item in element.value:
                yield from keywords(item)


@pytest.mark.parametrize("file", [picture(RAMP), waveform(np.ones((50, 2)), 500, ["Lead I", "Lead II"])])
def test_nothing_is_kept_that_tells_of_whom_it_is(file, tmp_path, caplog):
    assert all(secret.encode() in file for secret in SECRETS[:3])
    folder = tmp_path / SECRETS[1]
    folder.mkdir()
    (folder / "x.dcm").write_bytes(file)
    with caplog.at_level(logging.DEBUG), warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        datasets = [open_dicom(file), open_dicom(folder / "x.dcm")]
    for dataset in datasets:
        assert set(keywords(dataset)) <= {*READ, *READ_WITHIN}
        assert {element.keyword for element in dataset.file_meta} == {"TransferSyntaxUID"}
        everything = " ".join(map(str, (dataset, dataset.file_meta, dataset.__dict__, caplog.text, *warned)))
        assert not any(secret in everything for secret in SECRETS)


def test_the_list_of_tags_names_nobody():
    telling = ("Patient", "Name", "Date", "Time", "UID", "Institution", "Physician", "Operator", "Comment", "Number")
    fine = {"NumberOfFrames", "NumberOfWaveformChannels", "NumberOfWaveformSamples"}
    assert not [tag for tag in {*READ, *READ_WITHIN} - fine if any(word in tag for word in telling)]


def test_a_decoded_picture_carries_no_words():
    assert decode_dicom(picture(RAMP)).info == {}


# Waveforms --------------------------------------------------------------------------------------------------------


def test_a_waveform_in_microvolts():
    values = np.arange(100)[:, None] * [1, -2]
    ecg = read_dicom_ecg(waveform(values, 500, ["Lead II (Einthoven)", "Lead aVR"], sensitivity=2.5))
    assert (ecg.leads, ecg.rate) == (("II", "aVR"), 500)
    np.testing.assert_allclose(ecg.signal, values.T * 2.5e-3, rtol=1e-6)


def test_bad_waveforms():
    values = np.ones((50, 1))
    assert "ChannelSensitivityUnitsSequence is mmHg" in reason(
        waveform(values, 500, ["I"], unit="mmHg"), read_dicom_ecg
    )
    assert "lacks NumberOfWaveformSamples or Samp" in reason(waveform(values, 0, ["I"]), read_dicom_ecg)
    assert "it holds a picture" in reason(picture(RAMP), read_dicom_ecg)
    assert "leads of one name" in reason(waveform(np.ones((50, 2)), 500, ["I", "Lead I"]), read_dicom_ecg)
    with pytest.raises(ValueError, match="1 groups of waveforms"):
        read_dicom_ecg(waveform(values, 500, ["I"]), group=1)


# Real files -------------------------------------------------------------------------------------------------------


def test_files_of_many_makers(shared_data):
    folder = shared_data / "medical_dicom"
    expected = {
        "693_J2KR.dcm": (512, 512),
        "693_UNCI.dcm": (512, 512),
        "CT_small.dcm": (128, 128),
        "MR_small_RLE.dcm": (64, 64),
        "vlut_04.dcm": (512, 512),
        "SC_rgb.dcm": "in colour",
        "emri_small.dcm": "NumberOfFrames is 10",
        "reportsi.dcm": "no PixelData",
        "waveform_ecg.dcm": "it holds a waveform",
    }
    for name, wanted in expected.items():
        if isinstance(wanted, str):
            assert wanted in reason(folder / name), name
        else:
            found = read_dicom(folder / name)
            assert found.shape == wanted, name
            assert found.min() == 0, name
            assert found.max() == 1, name
    ecg = read_dicom_ecg(folder / "waveform_ecg.dcm")
    assert ecg.signal.shape == (12, 10000)
    assert ecg.rate == 1000
    assert set(ecg.leads) == {"I", "II", "III", "aVR", "aVL", "aVF", *(f"V{number}" for number in range(1, 7))}
    assert 0.5 < np.abs(ecg.signal).max() < 5
