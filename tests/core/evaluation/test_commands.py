"""The verbs and the evaluation after training: what they print and write."""

import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from collimate.encoders import Encoder
from collimate.encoding import Encoding
from collimate.evaluation import AfterTraining, Result, commands

from .toys import ColourMethod, ColourPictures, MeanColour


class ColourEncoder(Encoder):
    width = 3

    def __init__(self):
        super().__init__()
        self.matrix = nn.Linear(3, 3)
        nn.init.eye_(self.matrix.weight)
        nn.init.constant_(self.matrix.bias, -0.4)
        self.processor = MeanColour()

    def forward(self, inputs, mask=None):
        return Encoding(self.matrix(inputs))


@pytest.fixture(autouse=True)
def model(monkeypatch):
    """Whatever is loaded is a toy; sources are passed as they are."""
    monkeypatch.setattr("collimate.load", lambda folder: ColourMethod(-0.6), raising=False)


def numbers(folder, title):
    assert (folder / "report.html").stat().st_size > 5000
    return json.loads((folder / "report.json").read_text())[title]["metrics"]


def test_zero_shot_and_retrieval(tmp_path, capsys):
    commands.zero_shot("a model", ColourPictures(), templates="{}", output=tmp_path / "z", device="cpu", resamples=5)
    commands.retrieval("a model", ColourPictures(), output=tmp_path / "r", device="cpu", resamples=5)
    printed = capsys.readouterr().out
    assert "acc1" in printed
    assert "text_retrieval_recall@5" in printed
    assert "report.json" in printed
    assert numbers(tmp_path / "z", "Zero-shot classification")["acc1"] < 1
    assert numbers(tmp_path / "r", "Retrieval")["rsum"] <= 6


def test_probe_and_embed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("collimate.load", lambda folder: ColourEncoder(), raising=False)
    commands.probe(
        "a model", ColourPictures(60), ColourPictures(), tmp_path / "p", ["knn"], random_encoder=False, device="cpu"
    )
    assert numbers(tmp_path / "p", "Probes")["knn/acc1"] > 0.9
    commands.embed("a model", ColourPictures(7), str(tmp_path / "e"), device="cpu")
    assert "7 samples" in capsys.readouterr().out
    with pytest.raises(ValueError, match="probed and embedded only"):
        commands.zero_shot("a model", ColourPictures())


def test_after_training_writes_one_report(tmp_path):
    for version, steps in (("version_0", (5, 10)), ("version_1", (10, 15))):
        (tmp_path / "logs" / version).mkdir(parents=True)
        rows = "".join(f"{step},{3 - step / 10},,\n" for step in steps)
        (tmp_path / "logs" / version / "metrics.csv").write_text(f"step,loss,logit_scale,other\n{rows}")
    options = {"data": ColourPictures(), "device": "cpu", "resamples": 5}
    evaluation = AfterTraining(
        zero_shot={"colours": {**options, "templates": "{}"}}, retrieval={"captions": options, "again": options}
    )
    found = evaluation.run(tmp_path / "model", tmp_path)
    assert list(found) == ["colours", "captions", "again"]
    data = json.loads((tmp_path / "report.json").read_text())
    assert data["Training"] == {"loss": [[5, 2.5], [10, 2.0], [15, 1.5]]}
    assert data["Zero-shot classification: colours"]["metrics"] == found["colours"].metrics
    assert data["Retrieval: captions"]["metrics"] == data["Retrieval: again"]["metrics"]


def counted(method, data, limit=3):
    """An evaluation that a package might have."""
    return Result("Counting", {"samples": float(min(len(data), limit))}, {}, {"method": type(method).__name__})


def test_packages_bring_evaluations_of_their_own(tmp_path):
    data = {"data": ColourPictures(), "limit": 7}
    found = AfterTraining(further={"some": {"function": f"{__name__}.counted", **data}}).run(tmp_path, tmp_path)
    assert found["some"].metrics == {"samples": 7.0}
    assert "Counting: some" in json.loads((tmp_path / "report.json").read_text())
    with pytest.raises(ValueError, match=r"no evaluation 'collimate.nothing'"):
        AfterTraining(further={"some": {"function": "collimate.nothing", **data}}).run(tmp_path, tmp_path)
    with pytest.raises(ValueError, match=r"further.some lacks function"):
        AfterTraining(further={"some": data})
    with pytest.raises(ValueError, match=r"between.both lacks against, modality"):
        AfterTraining(between={"both": data})


def test_data_of_evaluations_are_looked_at_before_training(tmp_path):
    AfterTraining(retrieval={"mine": {"data": "world:test?length=4"}}).check()
    with pytest.raises(ValueError, match=r"evaluation\.retrieval\.mine: .*nowhere"):
        AfterTraining(retrieval={"mine": {"data": str(tmp_path / "nowhere")}}).check()
    with pytest.raises(ValueError, match=r'write \{"txt":"label"\}'):
        AfterTraining(retrieval={"mine": {"data": {"a.csv?columns={txt": "label}"}}}).check()


def test_an_evaluation_without_data_is_refused_before_training():
    with pytest.raises(ValueError, match=r"evaluation.probe.mine lacks test"):
        AfterTraining(probe={"mine": {"train": "a folder"}})
    written = AfterTraining(zero_shot={"mine": {"data": "a folder", "templates": ["{}"]}}).config()
    assert written["init_args"]["zero_shot"] == {"mine": {"data": "a folder", "templates": ["{}"]}}


def test_help_needs_no_torch():
    code = "import sys, collimate.evaluation.commands; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_half_precision_is_near(tmp_path):
    found = {}
    for precision in ("float32", "bfloat16"):
        folder = tmp_path / precision
        commands.zero_shot(
            "a model", ColourPictures(), templates="{}", output=folder, device="cpu", precision=precision, resamples=5
        )
        found[precision] = numbers(folder, "Zero-shot classification")["acc1"]
    assert abs(found["float32"] - found["bfloat16"]) < 0.2
    assert torch.get_default_dtype() == torch.float32
