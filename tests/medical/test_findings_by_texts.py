"""Findings by texts: sets of prompts, what is judged, by whom it is resampled, what lacks a modality; the command."""

import json

import numpy as np
import pytest
import torch

from collimate.checkpoints import save
from collimate.data import Source, open_source
from collimate.encoding import Encoding
from collimate.evaluation import Report, extract
from collimate.processing import Processor
from collimate.training import Method
from collimate_medical import XRayProcessor, evaluate_findings
from collimate_medical.finding_evaluation import zero_shot
from collimate_medical.prompts import (
    CHEST_FINDINGS,
    COMPETITION,
    ECG_CLASSES,
    PROMPT_SETS,
    WORLD_FINDINGS,
    FindingTexts,
    prompt_set,
    read_prompts,
)
from collimate_medical.zero_shot import best_text_scores, finding_scores
from collimate_world import ECG_FINDINGS, XRAY_FINDINGS

NAMES = ("effusion", "edema", "gout")


class Listed(Processor):
    def __call__(self, raw):
        return torch.tensor(raw, dtype=torch.float32)

    def example(self):
        return [0.0, 0.0, 0.0]


class Named(Processor):
    """Which of the names a text has, and whether it denies them."""

    def __call__(self, raw):
        sign = -1.0 if raw.startswith("no ") else 1.0
        return torch.tensor([sign * (name in raw) for name in NAMES])


class Oracle(Method):
    """Samples say as numbers what they have; `blur` of the first finding is turned around."""

    modalities = ("xray", "text")
    optional = ("xray",)

    def __init__(self, wrong=False):
        super().__init__()
        self.processors = {"xray": Listed(), "text": Named()}
        self.sign = torch.nn.Parameter(torch.tensor([-1.0 if wrong else 1.0, 1.0, 1.0]))

    def forward(self, modality, inputs, mask=None):
        return Encoding(inputs * self.sign if modality == "xray" else inputs)


class Studies(Source):
    """Two studies a patient; edema is uncertain in every fifth, one in four has no picture, gout never occurs."""

    name = "studies"

    def __init__(self, size=40, how="json"):
        self.size, self.how = size, how

    def __len__(self):
        return self.size

    def read(self, index):
        draw = np.random.default_rng(index)
        effusion, edema = (int(each) for each in draw.integers(2, size=2))
        sample = {"__key__": str(index), "__source__": self.name, "txt": "a report"}
        if index % 4:
            sample["dcm"] = [effusion - 0.5, edema - 0.5, 0.1]
        if self.how == "json":
            findings = {"effusion": effusion, "edema": -1 if index % 5 == 0 else edema}
            return sample | {"json": {"patient": index // 2, "findings": findings}}
        present = [name for name, there in (("effusion", effusion), ("edema", edema)) if there]
        return sample | {"labels.json": present, "patient.cls": index // 2}


OPTIONS = {"device": "cpu", "resamples": 20}


def by_label(found):
    return {row["label"]: row for row in found.details["per_label"]}


@pytest.mark.parametrize("how", ["json", "labels"])
def test_findings_are_ranked_and_those_of_one_class_are_not_judged(how):
    found = evaluate_findings(Oracle(), Studies(how=how), list(NAMES), **OPTIONS)
    rows = by_label(found)
    assert found.metrics["auroc"] == 1.0
    assert rows["effusion"]["auroc"] == rows["edema"]["auroc"] == 1.0
    assert np.isnan(rows["gout"]["auroc"])
    assert rows["gout"]["positives"] == 0
    assert found.protocol["without"] == "xray: 10"
    assert found.protocol["unreadable"] == 0
    assert "20 patients" in found.protocol["intervals"]
    assert rows["edema"]["known"] == (24 if how == "json" else 30)
    assert evaluate_findings(Oracle(wrong=True), Studies(how=how), list(NAMES), **OPTIONS).metrics["auroc"] == 0.5


def test_uncertain_findings_follow_the_policy():
    found = evaluate_findings(Oracle(), Studies(), ["edema"], uncertain="ones", **OPTIONS)
    assert by_label(found)["edema"]["known"] == 30
    assert found.metrics["auroc"] < 1


def test_scores_are_those_of_the_texts_and_of_the_methods_own_similarity():
    from .test_methods import convirt, gloria

    source = open_source("world-patients:test?patients=9&size=32&seconds=1")
    asked = {**prompt_set("world-xray"), "pneumothorax": FindingTexts(("a line", "air"), ())}
    given = {
        name: {"present": list(each.present), "absent": list(each.absent)} if each.absent else list(each.present)
        for name, each in asked.items()
    }
    method = convirt().eval()
    found = evaluate_findings(method, source, given, **OPTIONS)
    images = extract(method, source, ["xray"], device="cpu").encodings["xray"]
    denied = {name: each for name, each in asked.items() if each.absent}
    torch.testing.assert_close(found.scores[:, :3], finding_scores(method, images, denied, device="cpu"))
    texts = method.encode("text", ["a line", "air"]).pooled.detach()
    torch.testing.assert_close(found.scores[:, 3], best_text_scores(images.pooled, texts[None])[:, 0])
    method = gloria().eval()
    found = evaluate_findings(method, source, ["pneumothorax"], **OPTIONS)
    with torch.inference_mode():
        images = method.encode("xray", [source.read(place)["png"] for place in range(9)])
        sides = method.similarity(images, method.encode("text", ["pneumothorax", "no pneumothorax"]))
    torch.testing.assert_close(found.scores[:, 0], (sides[:, 0] - sides[:, 1]).sigmoid(), rtol=1e-4, atol=1e-5)
    assert found.protocol["score"] == "GLoRIA.similarity"


def test_a_set_that_nobody_has_is_refused():
    with pytest.raises(ValueError, match=r"no sample has Atelectasis.*there are edema, effusion"):
        evaluate_findings(Oracle(), Studies(), "chexpert", **OPTIONS)

    class Silent(Studies):
        def read(self, index):
            return {key: value for key, value in super().read(index).items() if key != "json"}

    with pytest.raises(ValueError, match="say nothing of findings"):
        evaluate_findings(Oracle(), Silent(), ["edema"], **OPTIONS)


# Sets -------------------------------------------------------------------------------------------------------------


def test_sets_of_texts():
    assert list(prompt_set("chexpert")) == list(COMPETITION)
    assert prompt_set("mimic").keys() == {*CHEST_FINDINGS, "No Finding"}
    assert len(prompt_set("mimic")) == 14
    assert prompt_set("ptb-xl").keys() == ECG_CLASSES.keys()
    assert WORLD_FINDINGS == {"world-xray": XRAY_FINDINGS, "world-ecg": ECG_FINDINGS}
    assert prompt_set("world-ecg")["wide qrs"].absent == ("no wide qrs", "There is no wide qrs.")
    assert all(len(each.absent) in (0, len(each.present)) for name in PROMPT_SETS for each in prompt_set(name).values())
    with pytest.raises(ValueError, match="the sets are chexpert, mimic, ptb-xl"):
        prompt_set("padchest")


def test_texts_from_names_mappings_and_files(tmp_path):
    assert read_prompts(["Edema", "gout"])["Edema"] == (("pulmonary edema",), ("no pulmonary edema",))
    assert read_prompts(["gout"])["gout"].absent == ("no gout",)
    mixed = {"MI": ["infarction", "q waves"], "gout": "a gouty toe", "x": {"present": ["x"], "absent": ["no x"]}}
    (tmp_path / "texts.json").write_text(json.dumps(mixed))
    for found in (read_prompts(mixed), read_prompts(str(tmp_path / "texts.json"))):
        assert found["MI"] == FindingTexts(("infarction", "q waves"), ())
        assert found["gout"] == (("a gouty toe",), ("no a gouty toe",))
        assert found["x"] == (("x",), ("no x",))
    with pytest.raises(FileNotFoundError, match="neither a file nor one of the sets chexpert"):
        read_prompts("nothing")
    for wrong in ({"x": {"present": ["x", "y"], "absent": ["no x"]}}, {"x": 3}, {"x": []}):
        with pytest.raises(ValueError, match=r"'x': its words"):
            read_prompts(wrong)
    with pytest.raises(ValueError, match="names, or a mapping"):
        read_prompts([])


# The command ------------------------------------------------------------------------------------------------------


def test_the_command_writes_a_report_with_films(tmp_path, capsys):
    from .test_methods import convirt

    save(convirt().eval(), tmp_path / "model")
    data = "world-patients:test?patients=12&size=32&seconds=1&missing=0.3"
    zero_shot(str(tmp_path / "model"), data, "world-xray", str(tmp_path / "found"), device="cpu", resamples=5)
    assert "auroc" in capsys.readouterr().out
    written = json.loads((tmp_path / "found" / "report.json").read_text())["Zero-shot findings"]
    assert [row["label"] for row in written["per_label"]] == list(XRAY_FINDINGS)
    assert "data:image" in (tmp_path / "found" / "report.html").read_text()
    assert isinstance(convirt().processors["xray"], XRayProcessor)


def test_examples_show_what_seems_likeliest():
    from .test_methods import convirt

    source = open_source("world-patients:test?patients=20&size=32&seconds=1")
    found = evaluate_findings(convirt().eval(), source, "world-xray", **OPTIONS)
    having, lacking = found.examples()
    assert 0 < len(having) <= 4
    assert all("true: " in text for _, text in having + lacking)
    found.add_to(Report("findings", "toys"))
