"""Findings and patients as samples say them; probes on shares of patients and on grades, from source to report."""

import json

import pytest
import torch

from collimate.data import Source
from collimate.data.source import CorruptSample
from collimate.evaluation.report import Report
from collimate_medical import ImageTransformer, XRayProcessor
from collimate_medical.findings import findings_of, keys_of, names_in, patients_of
from collimate_medical.probing import evaluate_severity, evaluate_shares


class Squares(Source):
    """Pictures with a bright upper half, left half, or both: the findings. Two of each patient."""

    class_names = None

    def __init__(self, count, first=0, style="json", damaged=()):
        self.name, self.count, self.first, self.style, self.damaged = f"squares-{first}", count, first, style, damaged

    def __len__(self):
        return self.count

    def read(self, index):
        if index in self.damaged:
            raise CorruptSample(f"squares {index}", "damaged")
        generator = torch.Generator().manual_seed(self.first + index)
        upper, left = (torch.rand(2, generator=generator) < 0.5).tolist()
        picture = 0.3 * torch.rand(32, 32, generator=generator)
        picture[:16] += 0.3 * upper
        picture[:, :16] += 0.3 * left
        patient = (self.first + index) // 2
        sample = {"__key__": str(index), "__source__": self.name, "png": picture.numpy()}
        uncertain = index % 5 == 0
        if self.style == "json":
            findings = {"upper": -1 if uncertain else int(upper), "left": int(left)}
            return sample | {"json": {"findings": findings, "patient": patient, "grade": int(upper) + int(left)}}
        names = [name for name, there in (("upper", upper), ("left", left)) if there]
        return sample | {"labels.json": names, "patient.cls": patient}


def tower():
    torch.manual_seed(0)
    encoder = ImageTransformer(32, 8, width=24, depth=2, heads=3, dropkey=0.0)
    encoder.processor = XRayProcessor(32)
    return encoder


OPTIONS = {"modality": "xray", "device": "cpu", "resamples": 40}


def test_keys_tell_findings_and_patients():
    assert keys_of(Squares(4)) == ("json", "json")
    assert keys_of(Squares(4, style="labels", damaged=(0, 1))) == ("labels.json", "patient.cls")
    assert keys_of(Squares(2, damaged=(0, 1))).all == []
    rows = [Squares(4).read(index)["json"] for index in range(4)]
    found = findings_of(rows)
    assert found[0]["upper"] == -1
    assert names_in(found, Squares(4)) == ["upper", "left"]
    assert patients_of({"json": rows}, "json", 4).tolist() == [0, 0, 1, 1]
    assert patients_of({}, None, 3).tolist() == [0, 1, 2]
    assert findings_of([["a"], [1], []], ["a", "b"]) == [{"a": 1, "b": 0}, {"a": 0, "b": 1}, {"a": 0, "b": 0}]
    assert findings_of([{"findings": None}, {}]) == [{}, {}]
    with pytest.raises(ValueError, match="label 2, of 2 names"):
        findings_of([[2]], ["a", "b"])


@pytest.mark.parametrize("style", ["json", "labels"])
def test_shares_from_source_to_report(tmp_path, style):
    train, test = Squares(160, style=style, damaged=(3,)), Squares(60, 1000, style)
    found = evaluate_shares(tower(), train, test, shares=(0.1, 1.0), supervised_steps=20, batch_size=32, **OPTIONS)
    for share in ("10%", "100%"):
        for row in ("", "random/", "supervised/"):
            assert 0 <= found.metrics[f"{row}auroc@{share}"] <= 1
    assert found.metrics["auroc@100%"] > 0.8  # halves are told by any encoder of patches
    assert found.metrics["auroc@100%"] >= found.metrics["auroc@10%"] - 0.02
    assert found.protocol["findings"] == "upper, left"
    assert "30 test patients" in found.protocol["intervals"]
    assert found.protocol["at 100%"] == "80 patients, 159 samples"
    assert "8 patients" in found.protocol["at 10%"]
    report = Report("Shares")
    found.add_to(report)
    report.save(tmp_path)
    assert "Probes by share of the labels" in json.loads((tmp_path / "report.json").read_text())


class SomeWithout(Squares):
    """Every third sample has no picture."""

    def read(self, index):
        sample = super().read(index)
        if index % 3 == 0:
            del sample["png"]
        return sample


def test_samples_without_the_modality_are_left_out():
    train, test = SomeWithout(120, damaged=(4,)), SomeWithout(60, 1000)
    found = evaluate_shares(tower(), train, test, shares=(1.0,), supervised_steps=5, random_encoder=False, **OPTIONS)
    whole = evaluate_shares(tower(), Squares(120), Squares(60, 1000), shares=(1.0,), supervised_steps=0, **OPTIONS)
    assert found.protocol["without"] == "xray: 40 samples in training, 20 in testing"
    assert "79 samples" in found.protocol["at 100%"]
    assert "without" not in whole.protocol
    assert found.metrics["auroc@100%"] > 0.8
    graded = evaluate_severity(tower(), train, test, "grade", random_encoder=False, **OPTIONS)
    assert graded.protocol["train data"].endswith("79 samples with a grade")
    with pytest.raises(ValueError, match=r"no sample has ecg \(ecg\.npz"):
        evaluate_shares(tower(), train, test, **OPTIONS | {"modality": "ecg"})


def test_what_shares_refuse():
    with pytest.raises(ValueError, match="Patients are in two parts of the data: 2 in train and test"):
        evaluate_shares(tower(), Squares(20), Squares(4, 16), supervised_steps=0, **OPTIONS)
    with pytest.raises(ValueError, match="policy multiclass"):
        evaluate_shares(tower(), Squares(20), Squares(4, 1000), uncertain={"upper": "multiclass"}, **OPTIONS)
    with pytest.raises(ValueError, match="Nothing is known of 'elsewhere'"):
        evaluate_shares(tower(), Squares(20), Squares(4, 1000), ["elsewhere"], blank="ignore", **OPTIONS)
    silent = Squares(4, 1000)
    silent.damaged = range(4)
    with pytest.raises(ValueError, match="say nothing of findings"):
        evaluate_shares(tower(), silent, Squares(4, 2000), **OPTIONS)


def test_severity():
    found = evaluate_severity(tower(), Squares(160), Squares(60, 1000), "grade", batch_size=32, **OPTIONS)
    assert found.metrics["auroc"] > 0.9
    assert found.metrics["quadratic_kappa"] > 0.7
    low, high = found.intervals["quadratic_kappa"]
    assert 0 < low <= found.metrics["quadratic_kappa"] <= high
    assert {"auroc/>=1", "auroc/>=2", "random/quadratic_kappa"} <= found.metrics.keys()
    with pytest.raises(ValueError, match="0 different grades in 'severity'"):
        evaluate_severity(tower(), Squares(20), Squares(4, 1000), **OPTIONS)
