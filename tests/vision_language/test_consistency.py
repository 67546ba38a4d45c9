"""The report on ALIP's gates: weights as in training, the truth where it is known, tables and pictures."""

import csv
import json

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from collimate.checkpoints import save
from collimate.cli import main
from collimate.data import OneCaption, Preparation, Source
from collimate.data.preparation import collate
from collimate.evaluation import Report
from collimate_vision_language.alip import gates, similarities
from collimate_vision_language.consistency import evaluate_consistency
from collimate_world import WorldSource

from .test_alip import alip


class Pictures(Source):
    """Pictures with texts of which some are wrong, some have no caption, and one has no raw text."""

    name = "pictures"

    def __len__(self):
        return 12

    def read(self, index):
        pixels = np.random.default_rng(index).integers(0, 255, (32, 32, 3), dtype=np.uint8)
        entries = [{"text": f"text {index}", "kind": "raw", "true": index % 3 > 0}]
        if index % 4:
            entries.append({"text": f"caption {index // 6}", "kind": "synthetic", "true": index != 5})
        if index == 7:
            entries = entries[1:]
        return {"__key__": str(index), "__source__": self.name, "png": pixels, "captions.json": entries}


@pytest.fixture
def method():
    method = alip(history_init="first_batch", gamma_pair=1.5)
    method.history = torch.tensor([0.2, 0.1, 0.3])
    return method.eval()


def test_weights_are_those_of_training(method):
    found = evaluate_consistency(method, Pictures(), batch_size=5, resamples=20)
    prepare = Preparation(method.processors, captions=method.captions)
    batch = collate([prepare(Pictures().read(index)) for index in range(12) if index != 7])
    with torch.no_grad():
        embeddings = method.embed(batch)
        expected = similarities(*(embeddings[name] for name in ("image", "text", "caption")))
    given = batch["caption_given"]
    torch.testing.assert_close(found.similarities[given], expected[given], rtol=0, atol=1e-5)
    torch.testing.assert_close(found.weights, gates(expected, method.history, given, 2.0, 1.5), rtol=1e-4, atol=1e-5)
    assert found.features.keys == [str(index) for index in range(12) if index != 7]
    assert found.protocol["without a raw text"] == 1
    assert found.protocol["history of"] == "the model"
    assert found.metrics["without_caption"] == pytest.approx(3 / 11)
    assert found.metrics["duplicate_captions"] == 1
    assert found.metrics["sample_weight"] == pytest.approx(found.weights.sample.mean().item())


def test_wrong_texts_are_found_as_well_as_the_numbers_say(method):
    found = evaluate_consistency(method, Pictures(), resamples=20)
    true = [texts.text_true for texts in found.texts]
    for name, score in {
        "pair_weight": found.weights.image_text,
        "image-text cosine": found.similarities[:, 1],
        "text-caption cosine": found.similarities[:, 0],
    }.items():
        assert found.metrics[f"wrong_texts/{name}_auroc"] == pytest.approx(roc_auc_score(true, score))
    weights = found.weights.image_text[torch.tensor(true)]
    assert found.metrics["true_texts/pair_weight"] == pytest.approx(weights.mean().item())
    described = torch.tensor([texts.caption is not None for texts in found.texts])
    captions_true = [texts.caption_true for texts in found.texts if texts.caption]
    expected = roc_auc_score(captions_true, found.weights.image_caption[described])
    assert found.metrics["wrong_captions/pair_weight_auroc"] == pytest.approx(expected)
    low, high = found.intervals["wrong_texts/pair_weight_auroc"]
    assert low <= found.metrics["wrong_texts/pair_weight_auroc"] <= high


def test_without_truth_captions_or_history(make_clip):
    """Any image-text model weighs, by the means of the data; without captions by image and text alone."""

    class Plain(Pictures):
        def read(self, index):
            sample = super().read(index)
            del sample["captions.json"]
            return sample | {"txt": f"text {index}"}

    found = evaluate_consistency(make_clip(), Plain(), resamples=20)
    assert not any("wrong" in name for name in found.metrics)
    assert found.protocol["history of"] == "these data"
    assert (found.weights.sample == 1).all()
    assert (found.weights.caption == 0).all()
    assert found.weights.text.log().mean().item() == pytest.approx(0, abs=1e-5)
    with pytest.raises(ValueError, match="no sample has a raw text"):
        evaluate_consistency(make_clip(), Plain(), captions={"text": OneCaption(kinds=["long"])})


def test_report_and_table(method, tmp_path):
    found = evaluate_consistency(method, WorldSource("test", "2-3", 40, text="noisy"), resamples=20)
    report = Report("gates")
    found.add_to(report)
    page = report.save(tmp_path).read_text()
    assert page.count("<img") == 16
    assert all(word in page for word in ("Lowest weights", "Highest weights", "cosine of image and text", ", wrong"))
    numbers = json.loads((tmp_path / "report.json").read_text())["Consistency"]
    assert numbers["metrics"]["wrong_texts/pair_weight_auroc"] == found.metrics["wrong_texts/pair_weight_auroc"]
    found.write_table(tmp_path / "weights.csv")
    with open(tmp_path / "weights.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 40
    for place in (0, 17):
        assert float(rows[place]["weight text"]) == pytest.approx(found.weights.text[place].item(), rel=1e-4)
        assert rows[place]["caption"] == found.texts[place].caption


def test_on_the_command_line(method, tmp_path, capsys):
    save(method, tmp_path / "model")
    choice = {"class_path": "collimate.data.OneCaption", "init_args": {"kinds": ["noisy"]}}
    given = [f"--checkpoint={tmp_path}/model", "--data=world:test?objects=2&length=60", f"--output={tmp_path}/report"]
    options = ["--resamples=20", "--limit=30", f"--captions={json.dumps({'text': choice})}"]
    main(["vision-language", "consistency", *given, *options])
    assert "wrong_texts/pair_weight_auroc" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "report").iterdir()} == {"report.html", "report.json", "weights.csv"}
    with open(tmp_path / "report" / "weights.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 30
