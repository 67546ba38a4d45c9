"""Mistakes in X-rays, ECGs and their tables."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from .data import picture, shard, train_on, verify
from .table import command, mistake

SUBJECT = "X-rays and ECGs"

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")


def xray(**tags: Any) -> bytes:
    """A DICOM file of grey pixels; a tag that is None is left out."""
    from pydicom import Dataset, FileMetaDataset
    from pydicom.uid import UID, ExplicitVRLittleEndian

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = UID("1.2.840.10008.5.1.4.1.1.1.1")
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = UID("1.2.3")
    pixels = {
        "Rows": 8, "Columns": 8, "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "PixelRepresentation": 0, "PixelData": bytes(64),
    }  # fmt: skip
    for name, value in (pixels | tags).items():
        if value is not None:
            setattr(dataset, name, value)
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def record(folder: Path, leads: tuple[str, ...] = LEADS, unit: str = "mV", rate: float = 100) -> Path:
    """A folder with one WFDB record of a second."""
    signal = np.sin(np.arange(100)[:, None] / np.arange(5, 5 + len(leads)))
    stored = (1000 * signal).astype("<i2")
    lines = [f"a {len(leads)} {rate:g} 100", *(f"a.dat 16 1000/{unit} 16 0 0 0 0 {lead}" for lead in leads)]
    (folder / "a.hea").write_text("\n".join(lines) + "\n")
    (folder / "a.dat").write_bytes(stored.tobytes())
    return folder


def heard(source: Path | str) -> None:
    from collimate_medical import ECGProcessor

    train_on(f"wfdb:{source}", ecg=ECGProcessor(100.0, 1.0))


def looked_at(folder: Path, data: bytes) -> None:
    from collimate_medical import XRayProcessor

    train_on(shard(folder, {"a.dcm": data}), xray=XRayProcessor(32))


@mistake(SUBJECT, "A JPEG file called .dcm", "set.tar: a.dcm", "not a DICOM file", "DICM", "leave them out")
def no_dicom(folder: Path) -> None:
    looked_at(folder, picture())


@mistake(SUBJECT, "A DICOM file without a picture", "set.tar: a.dcm", "no PixelData", "it holds", "leave them out")
def dicom_without_picture(folder: Path) -> None:
    looked_at(folder, xray(PixelData=None))


@mistake(
    SUBJECT, "A DICOM file of several frames", "set.tar: a.dcm", "NumberOfFrames is 3", "one", "write the one you mean"
)
def dicom_frames(folder: Path) -> None:
    looked_at(folder, xray(NumberOfFrames=3, PixelData=bytes(192)))


@mistake(SUBJECT, "A folder without WFDB records", ".hea", "There is no", "WFDB records", "name a folder")
def no_records(folder: Path) -> None:
    heard(folder)


@mistake(
    SUBJECT, "A WFDB header whose signals are not beside it", "a.hea", "missing file", "signal file", "leave them out"
)
def record_without_signal(folder: Path) -> None:
    (record(folder) / "a.dat").unlink()
    heard(folder)


@mistake(
    SUBJECT,
    "WFDB signals that were cut short",
    ": a",
    "truncated or damaged WFDB signal",
    "expected as many numbers",
    "anew",
)
def truncated_record(folder: Path) -> None:
    path = record(folder) / "a.dat"
    path.write_bytes(path.read_bytes()[:500])
    heard(folder)


@mistake(SUBJECT, "Leads in mmHg", "a.hea", "mmHg", "voltage", "leave them out")
def wrong_unit(folder: Path) -> None:
    heard(record(folder, unit="mmHg"))


@mistake(SUBJECT, "An ECG of three leads", ": a.ecg", "there are I, II, V1", "V2, V3", "missing='zero'")
def missing_leads(folder: Path) -> None:
    heard(record(folder, ("I", "II", "V1")))


@mistake(SUBJECT, "A rate in kHz where Hz belong", ": a", "0.5 Hz", "10 to 100000", "Hz")
def wrong_rate(folder: Path) -> None:
    heard(record(folder, rate=0.5))


@mistake(
    SUBJECT,
    "A patient in two parts of the data",
    "parts of the data",
    "1 in train and test",
    "two parts",
    "Split by patient",
)
def patient_twice(folder: Path) -> None:
    from collimate_medical import check_patients

    check_patients({"train": [1, 2], "test": [2, 3]})


@mistake(
    SUBJECT,
    "Pairs of X-rays and ECGs from a table that does not say whose they are",
    "xrays.jsonl",
    "sample 0",
    "`patient` and `when`",
    "`import-mimic-cxr`",
)
def pairs_of_nobody(folder: Path) -> None:
    (folder / "a.jpg").write_bytes(picture())
    (folder / "xrays.jsonl").write_text(json.dumps({"file": "a.jpg"}) + "\n")
    verify(f"paired:{folder}/xrays.jsonl?ecgs={folder}/xrays.jsonl")


@mistake(
    SUBJECT, "The wrong folder for `import-chexpert`", "train.csv", "There is no", "train.csv.gz", "name the folder"
)
def wrong_folder(folder: Path) -> None:
    command("medical", "import-chexpert", "--root", folder, "--output", folder / "table.jsonl")


@mistake(
    SUBJECT,
    "A finding that is neither 1, 0, -1 nor blank",
    "train.csv",
    "'yes'",
    "1, 0, -1 or nothing",
    "mend the cell",
)
def wrong_finding(folder: Path) -> None:
    from collimate_medical.importing import CHEXPERT_LABELS

    path = "CheXpert/train/patient00001/study1/view1_frontal.jpg"
    header = ["Path", "Frontal/Lateral", "AP/PA", *CHEXPERT_LABELS]
    cells = [path, "Frontal", "AP", "yes", *[""] * (len(CHEXPERT_LABELS) - 1)]
    for name in ("train", "valid"):
        (folder / f"{name}.csv").write_text(f"{','.join(header)}\n{','.join(cells)}\n")
    command("medical", "import-chexpert", "--root", folder, "--output", folder / "table.jsonl")


@mistake(
    SUBJECT,
    "A policy for a label that is not there",
    "policy",
    "'Edma'",
    "none of Edema, Fracture",
    "name one of these",
)
def unknown_finding(folder: Path) -> None:

    from collimate_medical.label_policies import label_targets

    label_targets([{"Edema": -1}], ["Edema", "Fracture"], {"Edma": "ones"})
