"""PointText: the loss by hand, equal texts, frozen text towers, ranks, chunks, folders, and real clouds by name."""

import json

import numpy as np
import pytest
import torch
import yaml
from torch.nn.functional import cross_entropy, normalize

import collimate
from collimate.app import installed_apps
from collimate.checkpoints import save
from collimate.cli import main
from collimate.data import open_source
from collimate.data.decoding import Undecodable, value_of
from collimate.data.preparation import TrainingPreparation, collate
from collimate.encoders import Frozen, NoProjection
from collimate.evaluation import evaluate_retrieval, evaluate_zero_shot
from collimate.losses import clip_loss
from collimate.losses.negatives import text_ids
from collimate.testing import assert_cached_equals_full, assert_same_on_ranks
from collimate_3d import GRUTextEncoder, ObjectPointNet, PointNet, PointNet2, PointProcessor, PointText, WordTokenizer
from collimate_world import ObjectSource

WORDS = ["one", "red", "blue", "cube", "ball"]
TEXTS = ["one red cube", "one blue ball", "one red cube", "one red ball", "one blue cube"]
OPTIONS = {"device": "cpu", "resamples": 10}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def ycb(shared_data):
    table = shared_data / "objects3d_ycb" / "manifest.csv"
    if not table.exists():
        pytest.skip(f"no clouds of objects at {table}")
    return table


def method(encoder=None, fields=("red", "green", "blue"), **given) -> PointText:
    parts = {
        "point_encoder": encoder or ObjectPointNet(16, 3 + len(fields), (8, 16)),
        "text_encoder": GRUTextEncoder(9, 8, 12),
        "point_processor": PointProcessor(32, fields),
        "tokenizer": WordTokenizer(WORDS, 6),
        "embed_dim": 10,
    }
    return PointText(**{**parts, **given})


def clouds(count: int, generator: int = 0) -> list[dict[str, np.ndarray]]:
    draw = np.random.default_rng(generator)
    return [
        {"xyz": draw.normal(size=(40, 3)).astype(np.float32), "rgb": draw.integers(0, 256, (40, 3)).astype(np.uint8)}
        for _ in range(count)
    ]


def batch_of(model: PointText, texts=TEXTS) -> dict:
    return {
        "points": model.processors["points"].batch(clouds(len(texts))),
        "text": model.processors["text"].batch(list(texts)),
    }


def by_hand(points, texts, scale, words):
    """Both cross-entropies with the logits of equal texts left out but for each sample's own."""
    logits = scale * normalize(points.double(), dim=1) @ normalize(texts.double(), dim=1).T
    for i, one in enumerate(words):
        for j, other in enumerate(words):
            if i != j and one == other:
                logits[i, j] = -torch.inf
    own = torch.arange(len(words))
    return (cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2


@pytest.mark.parametrize("texts", [TEXTS, WORDS], ids=["equal texts", "all different"])
def test_the_loss_by_hand(texts):
    model = method()
    batch = batch_of(model, texts)
    found, vectors = model.loss_terms(batch), model.embed(batch)
    assert set(found) == {"contrast"}
    expected = by_hand(vectors["points"], vectors["text"], 1 / 0.07, texts)
    torch.testing.assert_close(found["contrast"].double(), expected, rtol=1e-5, atol=1e-6)
    plain = clip_loss(vectors["points"], vectors["text"], model.logit_scale.exp())
    assert torch.equal(plain, found["contrast"]) is (texts is WORDS)


def test_samples_of_one_text_do_not_push_each_other_apart():
    model = method()
    batch = batch_of(model, ["one red cube"] * 4)
    torch.testing.assert_close(model.loss_terms(batch)["contrast"], torch.zeros(()), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "encoder",
    [lambda: ObjectPointNet(16, 6, (8, 16)), lambda: PointNet(6), lambda: PointNet2(6)],
    ids=["ObjectPointNet", "PointNet", "PointNet2"],
)
def test_gradients_reach_all_parameters(encoder):
    model = method(encoder())
    model.total_loss(model.loss_terms(batch_of(model))).backward()
    still = [name for name, each in model.named_parameters() if each.grad is None or not each.grad.isfinite().all()]
    assert not still
    assert model.logit_scale.grad != 0


def test_a_frozen_text_tower_is_the_joint_space():
    model = method(text_encoder=Frozen(GRUTextEncoder(9, 8, 12)), text_projection=NoProjection(12), embed_dim=12)
    before = {name: value.clone() for name, value in model.encoders["text"].state_dict().items()}
    learning = [each for each in model.parameters() if each.requires_grad]
    optimizer, batch, losses = torch.optim.Adam(learning, 2e-2), batch_of(model), []
    for _ in range(30):
        optimizer.zero_grad()
        losses.append(model.total_loss(model.loss_terms(batch)))
        losses[-1].backward()
        optimizer.step()
        model.after_optimizer_step()
    assert losses[-1] < 0.7 * losses[0]
    torch.testing.assert_close(model.encoders["text"].state_dict(), before)
    direct = model.encoders["text"](batch["text"], model.processors["text"].mask(batch["text"])).pooled
    assert torch.equal(model.encode("text", TEXTS).pooled, direct)


def test_the_scale_is_held():
    model = method(max_logit_scale=20.0)
    for given, held in ((5.0, np.log(20.0)), (-1.0, 0.0)):
        model.logit_scale.data.fill_(given)
        model.after_optimizer_step()
        assert model.logit_scale.item() == pytest.approx(held)


def test_the_loss_on_ranks():
    model = method()
    tokens = model.processors["text"].batch(TEXTS[:4])

    def loss(points, texts, ids):
        return model.losses({"points": points, "text": texts}, {"text": ids.detach().long()})["contrast"]

    rows = {"points": torch.randn(4, 10), "texts": torch.randn(4, 10), "ids": tokens.float()}
    assert text_ids(tokens)[0] == text_ids(tokens)[2]
    assert_same_on_ranks(loss, rows, ranks=(2,))


def test_chunks_give_the_same_gradients():
    model = method()
    batch = batch_of(model)

    def loss(chunk):
        model.gradient_cache = chunk
        return model.total_loss(model.loss_terms(batch))

    assert_cached_equals_full(lambda: loss(None), lambda: loss(2), dict(model.named_parameters()), 1e-5)


def test_a_folder_gives_the_same_vectors(tmp_path):
    model = method().eval()
    save(model, tmp_path / "model")
    again = collimate.load(tmp_path / "model")
    assert isinstance(again, PointText)
    assert again.config() == model.config()
    for modality, raw in (("points", clouds(3)), ("text", TEXTS)):
        assert torch.equal(again.encode(modality, raw).pooled, model.encode(modality, raw).pooled)


def test_objects_of_the_world_are_learned_and_asked_for():
    """Forty steps tell colours from classes well above chance, which is 1/48."""
    words = sorted({word for name in ObjectSource().class_names for word in name.split()})
    encoder, tokenizer = ObjectPointNet(32, 6, (16, 32)), WordTokenizer(["one", *words], 5)
    model = method(
        encoder, text_encoder=GRUTextEncoder(tokenizer.vocab_size, 16, 32), tokenizer=tokenizer, embed_dim=24
    )
    model.processors["points"] = PointProcessor(64, ("red", "green", "blue"), unit=False)
    source, prepare = ObjectSource(points=64), TrainingPreparation(model.processors)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for step in range(40):
        batch = collate([prepare(source.read(index)) for index in range(64 * step, 64 * step + 64)])
        optimizer.zero_grad()
        model.total_loss(model.loss_terms(batch)).backward()
        optimizer.step()
    test = ObjectSource("test", length=96, points=64)
    assert evaluate_zero_shot(model, test, templates=["one {}"], **OPTIONS).metrics["acc1"] > 0.3


def test_an_empty_or_damaged_cloud_is_refused_and_named():
    model = method(fields=())
    for raw, reason in (
        ({"xyz": np.zeros((0, 3))}, "no points"),
        (np.full((4, 3), np.nan), "no"),
        ({}, "no positions"),
    ):
        with pytest.raises(Undecodable, match=reason):
            model.encode("points", [raw])
    with pytest.raises(ValueError, match="red"):
        method().encode("points", [{"xyz": np.zeros((4, 3))}])


def test_files_of_tables_are_clouds(tmp_path):
    """What a table calls `one.npz` or `two.npy` is read as `points.npz` and `points.npy` are."""
    xyz = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    np.savez(tmp_path / "one.npz", points=xyz)
    np.save(tmp_path / "two.npy", xyz)
    (tmp_path / "table.csv").write_text("file,label\none.npz,ball\ntwo.npy,cube\n")
    source, model = open_source(f"{tmp_path / 'table.csv'}?columns={{txt: label}}"), method(fields=())
    rows = [TrainingPreparation(model.processors)(source.read(index)) for index in range(2)]
    assert torch.equal(rows[0]["points"], rows[1]["points"])
    assert [value_of(source.read(index), ("txt",)) for index in range(2)] == ["ball", "cube"]


def test_real_objects_by_their_names(ycb, tmp_path, monkeypatch):
    """Trained by the recipe, a few steps, and asked as a user asks."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "objects3d_ycb").symlink_to(ycb.parent)
    recipe = yaml.safe_load(installed_apps()["three-d"].recipe("point_text_ycb").read_text())
    recipe["data"]["num_workers"] = 0
    recipe["trainer"] |= {"max_steps": 60, "accelerator": "cpu", "enable_progress_bar": False}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    monkeypatch.chdir(tmp_path)
    main(["three-d", "train", "--config=recipe.yaml", "--seed_everything=0"])
    found = json.loads((tmp_path / "runs" / "point_text_ycb" / "report.json").read_text())
    assert found["Zero-shot classification: the seven objects of training"]["metrics"]["acc1"] > 2 / 7
    model = "runs/point_text_ycb/model"
    options = ["--templates={}", "--output=asked", "--device=cpu", "--resamples=10"]
    main(["three-d", "zero-shot", f"--checkpoint={model}", f"--data={ycb}", *options])
    asked = json.loads((tmp_path / "asked" / "report.json").read_text())["Zero-shot classification"]["metrics"]
    assert asked["acc1"] == found["Zero-shot classification: the seven objects of training"]["metrics"]["acc1"]
    again = collimate.load(model)
    named = evaluate_retrieval(again, open_source(f"{ycb}?columns={{txt: label}}"), **OPTIONS)
    assert len(named.text_ranks) == 7
