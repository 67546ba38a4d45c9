"""X-rays and ECGs of one patient, by time; that splits share nobody; that samples name nobody."""

import json
from datetime import datetime, timedelta

import numpy as np
import pytest
import wfdb
from PIL import Image

from collimate.data import open_source
from collimate.data.decoding import value_of
from collimate.data.preparation import Preparation, collate
from collimate.data.source import Source
from collimate_medical.ecg import ECG, LEADS
from collimate_medical.more import PATIENT
from collimate_medical.pairing import PairedSource, Study, check_patients, joined_report, pair_studies
from collimate_medical.processing import ECGProcessor, XRayProcessor
from collimate_medical.reading import encode_ecg, read_ecg

DAY = datetime(2150, 3, 1)


def study(patient, days):
    return Study(patient, DAY + timedelta(days=days))


class Listed(Source):
    name = "listed"

    def __init__(self, samples):
        self.samples = samples

    def __len__(self):
        return len(self.samples)

    def read(self, index):
        return self.samples[index]


def places(xrays, ecgs, **options):
    return [(pair.xray, pair.ecg) for pair in pair_studies(xrays, ecgs, **options)]


def test_the_nearest_or_all():
    xrays = [study("a", 0), study("b", 0), study("c", 0), study("a", 100)]
    ecgs = [study("a", 61), study("b", 5), study("a", -60), study("a", 59), study("b", -5), study("d", 0)]
    assert places(xrays, ecgs) == [(0, 3), (1, 4), (3, 0)]
    assert places(xrays, ecgs, policy="all") == [(0, 2), (0, 3), (1, 4), (1, 1), (3, 3), (3, 0)]
    assert places(xrays, ecgs, window_days=5) == [(1, 4)]
    assert places(xrays, ecgs, window_days=4.9) == []
    assert pair_studies(xrays, ecgs)[0].days == 59


def test_all_are_those_of_a_plain_search():
    draw = np.random.RandomState(0)
    xrays, ecgs = ([study(int(draw.randint(5)), float(draw.rand() * 300)) for _ in range(40)] for _ in range(2))
    expected = {
        (i, j)
        for i, one in enumerate(xrays)
        for j, other in enumerate(ecgs)
        if one.patient == other.patient and abs(one.when - other.when) <= timedelta(days=60)
    }
    found = places(xrays, ecgs, policy="all")
    assert len(found) == len(expected)
    assert set(found) == expected


def test_wrong_options():
    with pytest.raises(ValueError, match="nearest or all"):
        pair_studies([], [], policy="first")
    with pytest.raises(ValueError, match="0 or more"):
        pair_studies([], [], window_days=-1)


def test_a_patient_in_two_splits_is_counted_and_not_named():
    check_patients({"train": ["a", "b"], "test": ["c"]})
    with pytest.raises(ValueError, match="2 in train and test, 1 in val and test") as caught:
        check_patients({"train": ["p17", "p18", "p19"], "val": ["p20"], "test": ["p17", "p18", "p20"]})
    assert "p1" not in str(caught.value)


def test_reports():
    assert joined_report("Clear lungs. ", "Sinus rhythm") == "Chest X-ray: Clear lungs. ECG: Sinus rhythm"
    assert joined_report(" ", "Sinus rhythm") == "ECG: Sinus rhythm"


def test_samples_hold_both_and_name_nobody():
    picture = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    ecg = encode_ecg(ECG(np.random.RandomState(0).randn(12, 500).astype(np.float32), 100))
    xrays = [{"__key__": f"p1000{i}", "png": picture, "txt": b"clear", "json": {"id": f"p1000{i}"}} for i in range(3)]
    ecgs = [{"__key__": f"p1000{i}/ecg", "ecg.npz": ecg, "txt": "normal"} for i in range(3)]
    patients = ["p10000", "p10001", "p10000"]
    studies = [Study(patient, DAY) for patient in patients]
    source = PairedSource(Listed(xrays), Listed(ecgs), pair_studies(studies, studies, policy="all"), patients)
    samples = [source.read(place) for place in range(len(source))]
    assert [sample[PATIENT] for sample in samples] == [0, 0, 1, 0, 0]
    assert samples[0]["txt"] == "Chest X-ray: clear ECG: normal"
    assert "p1000" not in str(samples)
    prepare = Preparation({"xray": XRayProcessor(8), "ecg": ECGProcessor(seconds=5)}, also=[PATIENT])
    batch = collate([prepare(sample) for sample in samples])
    assert batch["ecg"].shape == (5, 12, 500)
    assert batch[PATIENT] == [0, 0, 1, 0, 0]
    with pytest.raises(ValueError, match="3 X-rays in listed, and patients of 2"):
        PairedSource(Listed(xrays), Listed(ecgs), source.pairs, patients[:2])
    with pytest.raises(ValueError, match="no pairs"):
        PairedSource(Listed(xrays), Listed(ecgs), [], patients)


def table(folder, name, rows, suffix):
    """A table of studies: X-rays as PNG files, ECGs as WFDB records."""
    lines = []
    for number, (patient, days, split) in enumerate(rows):
        file = f"{name}{number}"
        if suffix == "png":
            Image.fromarray(np.full((16, 16), 10 * number, np.uint8)).save(folder / f"{file}.png")
        else:
            signal = np.outer(np.sin(np.arange(100)), np.ones(12)) * (number + 1)
            options = {"units": ["mV"] * 12, "sig_name": list(LEADS), "fmt": ["16"] * 12}
            wfdb.wrsamp(file, fs=100, p_signal=signal, write_dir=str(folder), **options)
        when = (DAY + timedelta(days=days)).isoformat()
        said = f"{name} {number}"
        captions = said if number % 2 else [said]  # one text, or a list of them as the importers write it
        row = {"patient": patient, "when": when, "split": split, "captions": captions}
        lines.append(json.dumps({"file": f"{file}.{suffix}", **row}))
    path = folder / f"{name}.jsonl"
    path.write_text("\n".join(lines))
    return path


def test_two_tables_are_paired_in_one_line(tmp_path):
    xrays = table(tmp_path, "film", [("a", 0, "train"), ("b", 0, "train"), ("c", 3, "test")], "png")
    ecgs = table(
        tmp_path, "record", [("b", 9, "test"), ("a", 70, "train"), ("c", 3, "train"), ("b", 2, "train")], "hea"
    )
    source = open_source(f"paired:{xrays}?split=train&ecgs=wfdb:{ecgs}")
    assert [(pair.xray, pair.ecg) for pair in source.pairs] == [(1, 3)]
    assert open_source(f"paired:{xrays}?split=train&ecgs=wfdb:{ecgs}&window_days=80&policy=all").pairs[0][:2] == (0, 1)
    sample = source.read(0)
    assert sample["txt"] == "Chest X-ray: film 1 ECG: record 3"
    assert sample["captions.json"] == [{"text": "film 1", "kind": "xray"}, {"text": "record 3", "kind": "ecg"}]
    lists = open_source(f"paired:{xrays}?split=test&ecgs=wfdb:{ecgs}").read(0)
    assert lists["txt"] == "Chest X-ray: film 2 ECG: record 2"
    assert sample[PATIENT] == 1
    assert read_ecg(value_of(sample, ("ecg.npz",))).signal.max() == pytest.approx(4, abs=0.01)
    bare = tmp_path / "bare.jsonl"
    bare.write_text(json.dumps({"file": "film0.png", "patient": "a"}))
    with pytest.raises(ValueError, match="sample 0 does not say `patient` and `when`"):
        open_source(f"paired:{bare}?ecgs={ecgs}")
