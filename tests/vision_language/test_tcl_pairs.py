"""Statements about two pictures: what reads what, weights to begin with, shards in NLVR2's place, and the verb."""

import csv
import json

import pytest
import torch
import yaml
from PIL import Image

from collimate.checkpoints import save
from collimate.cli import main
from collimate.data import open_source
from collimate.processing import ClassLabels, ImageProcessor
from collimate_vision_language import TCLPairs
from collimate_vision_language.tcl.importing import HOLDS, import_nlvr

from .test_tcl import batch, bert, image_tower, tcl, tokenizer, words  # noqa: F401 - fixtures


def model(exclusive=True, **given) -> TCLPairs:
    torch.manual_seed(1)
    labels = ClassLabels(list(HOLDS), exclusive=exclusive)
    return TCLPairs(image_tower(), bert(token_head=False, layers=3), labels, ImageProcessor(32), tokenizer(), **given)


@pytest.fixture
def pairs(batch):  # noqa: F811
    sides = {"left": batch["image"], "right": batch["image"].flip(0)}
    return {"text": batch["text"], **sides, "labels": torch.eye(2).repeat(3, 1)}


@pytest.fixture(scope="module")
def nlvr(tmp_path_factory):
    """The layout of NLVR2."""
    folder, lines = tmp_path_factory.mktemp("nlvr"), []
    for number in range(4):
        for side in range(2):
            path = folder / "dev" / f"dev-{number}-0-img{side}.png"
            path.parent.mkdir(exist_ok=True)
            Image.new("RGB", (40, 32), (60 * number, 255 * side, 99)).save(path)
        lines.append({"identifier": f"dev-{number}-0-1", "sentence": "two cats", "label": str(number % 2 == 0)})
    lines.append({"identifier": "dev-9-0-0", "sentence": "rain", "label": "True"})
    (folder / "dev.json").write_text("\n".join(json.dumps(each) for each in lines))
    return folder


def test_each_layer_reads_the_left_picture_and_then_the_right_one(pairs):
    method = model().eval()
    text = method.encode("text", pairs["text"])
    finish, tower = method.processors["left"].finish, method.encoders["image"]
    left, right = (tower(finish(pairs[side])).pooled_first() for side in ("left", "right"))
    hidden = text.tokens
    for layer in method.encoders["text"].layers[1:]:
        hidden = layer(layer(hidden, text.mask, left.tokens, None), text.mask, right.tokens, None)
    first, last = method.head[0], method.head[2]
    logits = last(torch.relu(first(hidden[:, 0])))
    torch.testing.assert_close(method.embed(pairs)["logits"], logits)
    exchanged = method.embed(pairs | {"left": pairs["right"], "right": pairs["left"]})["logits"]
    assert not torch.allclose(exchanged, logits)
    loss = method.loss_terms(pairs)["classification"]
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1] * 3)))
    loss.backward()
    assert all(weight.grad is not None for weight in method.parameters())


def test_it_begins_where_pre_training_ended(tmp_path):
    taught = tcl(text_encoder=bert(layers=3))
    save(taught, tmp_path / "tcl")
    method = model(pretrained=str(tmp_path / "tcl"))
    theirs = taught.encoders.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in method.encoders.state_dict().items())


def test_shards_have_both_pictures(nlvr, tmp_path, capsys):
    import_nlvr(str(nlvr), str(nlvr / "dev.json"), str(tmp_path / "dev"))
    assert "Left out: 1 x pair" in capsys.readouterr().out
    source = open_source(str(tmp_path / "dev/*.tar"))
    assert len(source) == 4
    assert source.class_names == list(HOLDS)
    sample = source.read(0)
    assert {"left.png", "right.png", "txt", "cls"} <= sample.keys()
    assert sample["left.png"] != sample["right.png"]
    with pytest.raises(FileNotFoundError, match="None of the pairs"):
        import_nlvr(str(tmp_path), str(nlvr / "dev.json"), str(tmp_path / "x"))
    (tmp_path / "other.json").write_text('{"identifier": "a"}')
    with pytest.raises(ValueError, match="line 1 has no 'sentence'"):
        import_nlvr(str(nlvr), str(tmp_path / "other.json"), str(tmp_path / "x"))


def test_a_recipe_is_trained_and_tells(nlvr, tmp_path):
    """The whole way: the published recipe with small towers, and the verb."""
    from collimate_vision_language_app import APP

    import_nlvr(str(nlvr), str(nlvr / "dev.json"), str(tmp_path / "dev"))
    data = str(tmp_path / "dev/*.tar")
    recipe = yaml.safe_load(APP.recipe("tcl_nlvr").read_text())
    parts = model().config()["init_args"]
    names = ("image_encoder", "text_encoder", "tokenizer", "image_processor")
    recipe["model"]["init_args"] |= {name: parts[name] for name in names}
    recipe["data"] |= {"train": data, "val": data, "num_workers": 0, "batch_size": 2}
    for name in ("global_batch_size", "epoch_samples"):
        recipe["data"].pop(name)
    recipe["trainer"] = {"max_steps": 2, "accelerator": "cpu", "val_check_interval": 2, "check_val_every_n_epoch": None}
    recipe["output"] = str(tmp_path / "run")
    (tmp_path / "nlvr.yaml").write_text(yaml.safe_dump(recipe))
    main(["vision-language", "train", "--config", str(tmp_path / "nlvr.yaml")])
    asked = ["--checkpoint", str(tmp_path / "run/model"), "--data", data]
    main(["vision-language", "classify", *asked, "--output", str(tmp_path / "told"), "--resamples", "2"])
    rows = list(csv.DictReader((tmp_path / "told/answers.csv").open()))
    assert sorted(row["labels"] for row in rows) == [HOLDS[0]] * 2 + [HOLDS[1]] * 2


def test_labels_that_are_not_exclusive_are_refused():
    with pytest.raises(ValueError, match="exclusive"):
        model(exclusive=False)
