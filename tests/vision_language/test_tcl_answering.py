"""Questions about pictures: the head's formula, what answers are worth, weights to begin with, tables, and the verb."""

import csv
import json

import pytest
import torch
import yaml
from PIL import Image

import collimate
from collimate.checkpoints import CheckpointError, save
from collimate.cli import main
from collimate.configurable import build
from collimate.data import open_source
from collimate.data.decoding import Undecodable
from collimate.evaluation.answers import answer, judge
from collimate.processing import ImageProcessor
from collimate_vision_language import AnswerScores, TCLAnswers
from collimate_vision_language.tcl.importing import import_vqa

from .test_tcl import batch, bert, drawn, image_tower, tcl, to_released, tokenizer, words  # noqa: F401 - fixtures

ANSWERS = ["a dog", "red", "two"]
QUESTIONS = {"a dog": ["a dog"] * 8 + ["cats"] * 2, "two cats": ["two"] * 3 + ["red"] * 7, "rain": ["the sea"] * 10}


def model(size=32, **given) -> TCLAnswers:
    torch.manual_seed(1)
    parts = image_tower(size), bert(token_head=False), AnswerScores(ANSWERS), ImageProcessor(size), tokenizer()
    return TCLAnswers(*parts, **given)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """The layout of VQA v2, with its pictures, imported."""
    folder = tmp_path_factory.mktemp("vqa")
    for split in ("train", "val"):
        asked, told = [], []
        for number, (question, answers) in enumerate(QUESTIONS.items(), 7):
            name = f"COCO_{split}2014_{number:012d}.jpg"
            Image.new("RGB", (40, 32), (30 * number, 0, 99)).save(folder / name)
            asked.append({"image_id": number, "question": f"{question}?", "question_id": 10 * number})
            listed = [{"answer": each, "answer_confidence": "yes", "answer_id": 1} for each in answers]
            told.append({"question_id": 10 * number, "image_id": number, "answers": listed})
        asked.append({"image_id": 99, "question": "lost?", "question_id": 990})
        told.append({"question_id": 990, "image_id": 99, "answers": [{"answer": "two"}]})
        (folder / f"{split}_questions.json").write_text(json.dumps({"questions": asked}))
        (folder / f"{split}_annotations.json").write_text(json.dumps({"annotations": told}))
    (folder / "listed.txt").write_text("\n".join(ANSWERS))
    files = (
        [str(folder / f"{split}_{kind}.json") for split in ("train", "val")] for kind in ("questions", "annotations")
    )
    import_vqa(str(folder), *files, str(folder / "vqa.jsonl"), str(folder / "listed.txt"))
    return folder / "vqa.jsonl"


def test_an_answer_is_worth_what_the_measure_says():
    """The mean over all choices of nine of ten annotators of min(1, how many of the nine gave it / 3)."""
    scores = AnswerScores(ANSWERS)
    for count in range(11):
        said = ["red"] * count + ["two"] * (10 - count)
        nine = [said[:left] + said[left + 1 :] for left in range(10)]
        measured = sum(min(1.0, rest.count("red") / 3) for rest in nine) / 10
        assert float(scores(said)[1]) == pytest.approx(measured)
    assert scores([]).tolist() == [0, 0, 0]
    with pytest.raises(Undecodable, match="unknown label"):
        scores(["blue"])
    assert build(scores.config()).config() == scores.config()


def test_logits_are_read_off_the_class_token_that_has_read_the_picture(batch):  # noqa: F811
    method = model().eval()
    rows = batch | {"labels": torch.rand(6, 3)}
    text, image = method.encode("text", rows["text"]), method.encode("image", rows["image"])
    fused = method.encoders["text"].fuse(text, image.pooled_first())
    first, last = method.head[0], method.head[2]
    logits = last(torch.relu(first(fused.pooled)))
    torch.testing.assert_close(method.embed(rows)["logits"], logits)
    loss = method.loss_terms(rows)["classification"]
    torch.testing.assert_close(loss, torch.nn.functional.binary_cross_entropy_with_logits(logits, rows["labels"]))
    loss.backward()
    assert all(weight.grad is not None for weight in method.parameters())
    other = method.embed(rows | {"image": rows["image"].flip(0)})["logits"]
    assert not torch.allclose(other, logits)


@pytest.mark.parametrize("size", [32, 48])
def test_it_begins_where_pre_training_ended(tmp_path, size):
    taught = tcl()
    save(taught, tmp_path / "tcl")
    torch.save({"model": to_released(taught)}, tmp_path / "released.pth")
    for source in ("tcl", "released.pth"):
        method = model(size, pretrained=str(tmp_path / source))
        for name in ("text.encoder.layer.1.crossattention.self.key.weight", "image.model.blocks.0.attn.qkv.weight"):
            assert torch.equal(method.encoders.state_dict()[name], taught.encoders.state_dict()[name])
        assert method.encoders["image"].model.pos_embed.shape[1] == 1 + (size // 8) ** 2
        assert "pretrained" not in method.config()["init_args"]
    weights = to_released(taught)
    weights.pop("visual_encoder.norm.weight")
    torch.save(weights, tmp_path / "less.pth")
    with pytest.raises(CheckpointError, match=r"encoders\.image\.model\.norm\.weight"):
        model(pretrained=str(tmp_path / "less.pth"))


def test_tables_have_a_row_a_question(table, tmp_path):
    train, val = (open_source(f"{table}?split={split}") for split in ("train", "val"))
    assert (len(train), len(val)) == (2, 3)  # an answer that is not listed teaches nothing, but counts as wrong
    assert val.read(1)["labels.json"] == ["two"] * 3 + ["red"] * 7
    assert val.read(2)["labels.json"] == []
    assert (table.parent / "answers.txt").read_text().splitlines() == ANSWERS
    folder = table.parent
    files = [str(folder / "train_questions.json")], [str(folder / "train_annotations.json")]
    import_vqa(str(folder), *files, str(tmp_path / "some.jsonl"), answers=2)
    assert (tmp_path / "answers.txt").read_text().splitlines() == ["a dog", "red"]


def test_what_is_no_vqa_is_refused(table, tmp_path):
    folder = table.parent
    questions, annotations = (str(folder / f"train_{kind}.json") for kind in ("questions", "annotations"))
    with pytest.raises(ValueError, match="no 'annotations'"):
        import_vqa(str(folder), [questions], [questions], str(tmp_path / "x.jsonl"))
    with pytest.raises(ValueError, match="one for each"):
        import_vqa(str(folder), [questions], [], str(tmp_path / "x.jsonl"))
    val = [str(folder / f"val_{kind}.json") for kind in ("questions", "annotations")]
    with pytest.raises(ValueError, match="no training split"):
        import_vqa(str(folder), val[:1], val[1:], str(tmp_path / "x.jsonl"))
    with pytest.raises(FileNotFoundError, match="None of the pictures"):
        import_vqa(str(tmp_path), [questions], [annotations], str(tmp_path / "x.jsonl"))


def test_answers_are_judged_by_what_they_are_worth(table):
    method = model().eval()
    answers = answer(method, open_source(f"{table}?split=val"))
    assert answers.targets.tolist() == [[1, 0, 0], [0, 1, pytest.approx(0.9)], [0, 0, 0]]
    best = answers.probabilities.argmax(1)
    worth = answers.targets[torch.arange(3), best].mean()
    found = judge(answers, method, resamples=2)
    assert found.metrics["vqa_accuracy"] == pytest.approx(float(worth))
    assert {each["class"]: each["samples"] for each in found.details["per_class"]} == {"a dog": 1, "red": 1, "two": 1}


def test_a_recipe_is_trained_and_answers(table, tmp_path):
    """The whole way: the published recipe with small towers, and the verb."""
    from collimate_vision_language_app import APP

    recipe = yaml.safe_load(APP.recipe("tcl_vqa").read_text())
    parts = model().config()["init_args"]
    names = ("image_encoder", "text_encoder", "tokenizer", "image_processor")
    recipe["model"]["init_args"] |= {name: parts[name] for name in names}
    recipe["model"]["init_args"]["labels"]["init_args"]["names"] = str(table.parent / "answers.txt")
    recipe["data"] |= {"train": f"{table}?split=train", "val": f"{table}?split=val", "num_workers": 0, "batch_size": 2}
    for name in ("global_batch_size", "epoch_samples"):
        recipe["data"].pop(name)
    recipe["trainer"] = {"max_steps": 2, "accelerator": "cpu", "val_check_interval": 2, "check_val_every_n_epoch": None}
    recipe["output"] = str(tmp_path / "run")
    (tmp_path / "vqa.yaml").write_text(yaml.safe_dump(recipe))
    main(["vision-language", "train", "--config", str(tmp_path / "vqa.yaml")])
    data = ["--checkpoint", str(tmp_path / "run/model"), "--data", f"{table}?split=val"]
    main(["vision-language", "classify", *data, "--output", str(tmp_path / "answers"), "--resamples", "2"])
    rows = list(csv.DictReader((tmp_path / "answers/answers.csv").open()))
    assert [row["labels"] for row in rows] == ["a dog", "red; two", ""]
    assert isinstance(collimate.load(tmp_path / "run/model"), TCLAnswers)


def test_a_bert_that_cannot_see_is_refused():
    parts = image_tower(), bert(cross_width=None, token_head=False), AnswerScores(ANSWERS)
    with pytest.raises(ValueError, match="cross_width=32"):
        TCLAnswers(*parts, ImageProcessor(32), tokenizer())
