"""Real X-rays, notes and ECGs from file to report; what is absent skips."""

import csv
import json

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from collimate.data import DataModule, EvalLoader, open_source
from collimate.data.decoding import Undecodable
from collimate.encoders import OpenClipTextEncoder
from collimate.evaluation import evaluate_retrieval
from collimate.evaluation.report import Report
from collimate.processing import ClipTokenizer
from collimate.training import Optimization
from collimate_medical import ECGProcessor, ECGTransformer, ImageTransformer, MoRE, XRayProcessor, check_patients
from collimate_medical.dicom import read_dicom, read_grey
from collimate_medical.ecg_paper import MARGIN, SPEED, ecg_paper
from collimate_medical.explain_report import add_explanation, explain_sample
from collimate_medical.pairing import PairedSource, StudyPair
from collimate_medical.probing import evaluate_shares
from collimate_medical.reports import report_text
from collimate_medical.wfdb_records import read_wfdb


@pytest.fixture
def real(shared_data):
    def folder(name):
        if not (shared_data / name).is_dir():
            pytest.skip(f"no {name} among the real data sets")
        return shared_data / name

    return folder


def rows_of(folder):
    with open(folder / "manifest.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def tower(seed=0):
    torch.manual_seed(seed)
    encoder = ImageTransformer(64, 16, width=32, depth=2, heads=4, dropkey=0.0)
    encoder.processor = XRayProcessor(64)
    return encoder


def small_more():
    torch.manual_seed(0)
    sizes = {"width": 24, "depth": 2, "heads": 3, "dropkey": 0.0}
    return MoRE(
        ImageTransformer(64, 16, **sizes),
        ECGTransformer(1000, 12, 16, **sizes),
        OpenClipTextEncoder(context_length=32, width=24, heads=3, layers=1),
        XRayProcessor(64),
        ECGProcessor(),
        ClipTokenizer(32),
        embed_dim=16,
    )


def test_films_of_patients_in_a_probe_by_shares(real, tmp_path):
    """Whether a film was taken from behind or from the front, by an untrained tower: above chance, by patient."""
    folder = real("medical_cxr_hannover")
    lines: dict[str, list[str]] = {"train": [], "test": []}
    patients: dict[str, set[str]] = {"train": set(), "test": set()}
    for row in rows_of(folder):
        if row["projection"] not in ("pa", "ap"):
            continue
        finding = {"pa": int(row["projection"] == "pa"), "intensive care": int(bool(row["icu_admission_offset"]))}
        table = {"file": str(folder / row["file"]), "findings": finding, "patient": row["patient_id"]}
        lines[row["split"]].append(json.dumps(table) + "\n")
        patients[row["split"]].add(row["patient_id"])
    check_patients(patients)
    for split, rows in lines.items():
        (tmp_path / f"{split}.jsonl").write_text("".join(rows))
    sources = [open_source(f"{tmp_path}/{split}.jsonl") for split in ("train", "test")]
    found = evaluate_shares(
        tower(),
        *sources,
        shares=(1.0,),
        modality="xray",
        random_encoder=False,
        supervised_steps=0,
        device="cpu",
        resamples=50,
    )
    assert found.metrics["auroc@100%"] > 0.5
    assert f"{len(patients['test'])} test patients" in found.protocol["intervals"]


def test_films_with_notes(real):
    folder = real("medical_cxr_notes")
    source = open_source(f"{folder}/manifest.csv?columns={{txt: clinical_notes, patient.cls: patientid}}")
    notes = [row["clinical_notes"] for row in rows_of(folder) if row["clinical_notes"].strip()]
    assert all(report_text(note) for note in notes)
    assert not any("_" in report_text(note) for note in notes)
    loader = EvalLoader(source, {"xray": XRayProcessor(64, equalize=True)}, 16, limit=32, max_corrupt_rate=1.0)
    batches = list(loader)
    pixels = torch.cat([batch["xray"][batch["valid"]] for batch in batches])
    assert len(pixels) == 32
    assert (pixels.flatten(1).float().std(1) > 20).all()  # contrast was equalised


def test_films_and_ecgs_paired_artificially_from_file_to_retrieval(real, tmp_path):
    """No patient of one set is in the other: pairs are drawn, so that nothing but the way of the data is tried."""
    films, hearts = real("medical_cxr_notes"), real("medical_ecg_12lead")
    sources, patients = {}, {}
    for split in ("train", "test"):
        rows = [row for row in rows_of(films) if row["split"] == split and row["clinical_notes"].strip()]
        table = [{"file": str(films / row["file"]), "captions": [row["clinical_notes"]]} for row in rows]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))
        ecgs = open_source(f"wfdb:{hearts}/manifest.csv?split={split}&columns={{txt: diagnoses}}")
        patients[split] = [row["patientid"] for row in rows]
        pairs = [StudyPair(place, place % len(ecgs), 0.0) for place in range(len(rows))]
        sources[split] = PairedSource(open_source(f"{tmp_path}/{split}.jsonl"), ecgs, pairs, patients[split])
    check_patients(patients)
    sample = sources["test"].read(0)
    assert sample["txt"].startswith("Chest X-ray: ")
    assert " ECG: " in sample["txt"]
    method = small_more()
    method.optimization = Optimization(lr=1e-3)
    trainer = Trainer(
        max_steps=4,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(method, DataModule(sources["train"], batch_size=16, augmentations={}))
    found = evaluate_retrieval(method.eval(), sources["test"], modality="ecg", device="cpu", resamples=5)
    assert found.protocol["samples"] == len(sources["test"])
    assert 0 <= found.metrics["ecg_retrieval_recall@10"] <= 1


def test_dicom_pictures_by_level_and_by_number(real):
    read = 0
    for path in sorted(real("medical_dicom").glob("*.dcm")):
        try:
            picture = read_dicom(path)
        except Undecodable:
            with pytest.raises(Undecodable):
                read_grey(path)
            continue
        assert np.array_equal(read_grey(path), np.rint(picture * 255).astype(np.uint8))
        read += 1
    assert read >= 5


def test_ecgs_on_paper(real):
    paths = sorted(real("medical_ecg_12lead").rglob("*.hea"))[:3]
    paths += [real("medical_wfdb_samples") / "s0010_re.hea"]
    for path in paths:
        ecg = read_wfdb(path)
        figure = ecg_paper(ecg)
        seconds = min(ecg.signal.shape[1] / ecg.rate, 20)
        assert figure.get_size_inches()[0] * 25.4 == pytest.approx(MARGIN + SPEED * seconds, abs=0.2)
        assert [text.get_text() for text in figure.axes[0].texts] == list(ecg.leads)


def test_a_film_and_an_ecg_explained(real, tmp_path):
    """An untrained model looks anywhere; what is drawn is what it saw."""
    films, ecgs = real("medical_cxr_hannover"), real("medical_ecg_12lead")
    method = small_more()
    report = Report("Real data")
    for source, modality in ((open_source(f"{films}/manifest.csv"), "xray"), (open_source(f"wfdb:{ecgs}"), "ecg")):
        found = explain_sample(method, source, 1, "left ventricular hypertrophy", device="cpu")
        assert set(found.maps) == {modality}
        assert found.maps[modality].isfinite().all()
        assert len(found.words[modality]) == 3
        add_explanation(report, found, {modality: method.encoders[modality]}, 10.0)
    page = report.save(tmp_path).read_text()
    assert page.count("25 mm/s") == 1
    assert page.count("the cross is its maximum") == 1
