"""Dialog2Flow, SPACE-2 and SiMHand as methods: losses, chunks, folders, real tables, what they learn, bad input."""

import json

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image
from torch.nn.functional import cross_entropy, normalize

import collimate
from collimate.checkpoints import save
from collimate.data import DataModule, PerLabel, TableSource, WithNeighbours
from collimate.encoders import Bert, MLPProjection, OpenClipImageEncoder, OpenClipTextEncoder
from collimate.losses import supcon_loss, tree_similarities, view_supcon_losses
from collimate.processing import ClipTokenizer, ImageProcessor
from collimate.testing import assert_cached_equals_full
from collimate.training import Optimization
from collimate.training.pairs import side_by_side
from collimate_vision_language import SPACE2, Dialog2Flow, SiMHand
from collimate_vision_language.simhand import pose_neighbours

SIZE, CONTEXT = 32, 12
TEXTS = ["may the third", "in june", "at noon", "by nine", "which day", "what day is it"]
LABELS = ["inform date", "inform date", "inform time", "inform time", "request date", "request date"]
TREES = [
    {"taxi": {"inform": {"date": [{"value": "may"}]}}},
    {"taxi": {"inform": {"date": [{"value": "june"}]}}},
    {"taxi": {"inform": {"time": [{"value": "noon"}]}}},
    {"hotel": {"inform": {"time": [{"value": "nine"}]}}},
    {"hotel": {"request": {"date": [{"value": "?"}]}}},
    {},
]


def bert(width=16, **given):
    sizes = {"vocab_size": 49409, "context_length": CONTEXT, "width": width, "layers": 1, "heads": 2, "hidden": 32}
    return Bert(**sizes, init_std=0.1, **given)


def dialog2flow(**given):
    words = OpenClipTextEncoder(width=16, heads=2, layers=1, context_length=CONTEXT)
    tokenizer = ClipTokenizer(CONTEXT)
    return Dialog2Flow(bert(dropout=0.0), tokenizer, words, tokenizer, head=MLPProjection(16, 8), **given)


def space2(mask_rate=0.15, dropout=0.1):
    return SPACE2(bert(dropout=dropout, token_head=True), ClipTokenizer(CONTEXT), dim=6, mask_rate=mask_rate)


def simhand():
    tower = OpenClipImageEncoder(width=32, layers=1, image_size=SIZE, patch_size=16, head_width=16)
    return SiMHand(tower, ImageProcessor(SIZE))


METHODS = {"Dialog2Flow": dialog2flow, "SPACE-2": space2, "SiMHand": simhand}


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    texts = ClipTokenizer(CONTEXT).batch(TEXTS)
    points = torch.rand(6, 21, 2, generator=generator).tolist()
    return {
        "text": texts,
        "text_view": texts,
        "labels": ClipTokenizer(CONTEXT).batch(LABELS),
        "image": torch.randint(0, 256, (6, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator),
        "json": [{"tree": tree, "keypoints": pose} for tree, pose in zip(TREES, points, strict=True)],
    }


@pytest.mark.parametrize("name", METHODS)
def test_a_step_reaches_every_trainable_parameter(name, batch):
    method = METHODS[name]().train()
    method.total_loss(method.loss_terms(batch)).backward()
    for parameter_name, value in method.named_parameters():
        assert (value.grad is not None) == value.requires_grad, parameter_name
    if name == "Dialog2Flow":
        assert not any(value.requires_grad for value in method.label_encoder.parameters())


@pytest.mark.parametrize("make", [lambda: dialog2flow(temperature=0.5), lambda: space2(mask_rate=0.0), simhand])
def test_chunks_change_nothing(make, batch):
    method = make().eval()

    def cached():
        method.gradient_cache = 4
        try:
            return method.total_loss(method.loss_terms(batch))
        finally:
            method.gradient_cache = None

    parameters = {name: value for name, value in method.named_parameters() if value.requires_grad}
    full = lambda: method.total_loss(method.loss_terms(batch))  # noqa: E731
    # 1e-3: towards soft targets most of a gradient cancels, and what is left has float32's rounding of the whole.
    assert_cached_equals_full(full, cached, parameters, tolerance=1e-3)


@pytest.mark.parametrize("name", METHODS)
def test_a_saved_method_is_the_same(name, batch, tmp_path):
    method = METHODS[name]().eval()
    save(method, tmp_path / "model")
    again = collimate.load(tmp_path / "model")
    assert again.config() == method.config()
    modality = method.modalities[0]
    found, expected = (each.encode(modality, batch[modality]).pooled for each in (again, method))
    torch.testing.assert_close(found, expected)


def test_dialog2flow_is_its_formula(batch):
    method = dialog2flow(label_temperature=0.5).eval()
    embeddings = method.embed(batch)
    first, second = normalize(embeddings["text"], dim=1).view(3, 2, -1).unbind(1)
    labels = normalize(embeddings["labels"][::2], dim=1)
    targets = (labels @ labels.T / 0.5).softmax(1)
    logits = first @ second.T / 0.05
    expected = (cross_entropy(logits, targets) + cross_entropy(logits.T, targets)) / 2
    torch.testing.assert_close(method.loss_terms(batch)["label"], expected)


def test_space2_contrasts_by_trees_and_others_with_themselves(batch):
    method = space2(dropout=0.0).eval()
    embeddings = method.embed(batch)
    features = torch.stack([embeddings["text"], embeddings["text_view"]], 1)
    expected = view_supcon_losses(features, tree_similarities(TREES), 0.07).mean()
    torch.testing.assert_close(method.loss_terms(batch)["tree"], expected)
    alone = {**batch, "json": [{} for _ in TREES]}
    expected = view_supcon_losses(features, None, 0.07).mean()
    torch.testing.assert_close(method.loss_terms(alone)["tree"], expected)


def test_simhand_with_equal_poses_is_plain_contrast(batch):
    method = simhand().eval()
    features = normalize(method.embed(batch)["image"], dim=1).view(3, 2, -1)
    alike = {**batch, "json": [batch["json"][0]] * 6}
    expected = supcon_loss(features, temperature=0.5)
    torch.testing.assert_close(method.loss_terms(alike)["pose"], expected)
    assert not torch.isclose(method.loss_terms(batch)["pose"], expected, atol=1e-3)


def test_poses_are_compared_without_place_and_size_across_videos():
    generator = torch.Generator().manual_seed(1)
    poses = torch.rand(10, 21, 2, generator=generator)
    moved = 0.5 * poses + 0.3
    videos = torch.arange(20) // 2  # two poses a video
    found = pose_neighbours(torch.cat([poses, moved]), videos)
    assert torch.equal(found[:, 0], torch.arange(20).roll(10))
    same_video = pose_neighbours(torch.cat([poses, moved]), torch.arange(10).repeat(2))
    assert not (same_video[:, 0] == torch.arange(20).roll(10)).any()


def test_what_they_cannot_train_on_is_told(batch):
    with pytest.raises(ValueError, match="samples: 2"):
        dialog2flow().loss_terms(batch | {"labels": batch["labels"].roll(1, 0)})
    with pytest.raises(ValueError, match="neighbours: 1"):
        side_by_side(torch.ones(3, 2), sampling="WithNeighbours")
    with pytest.raises(ValueError, match="'keypoints' of their metadata"):
        simhand().loss_terms(batch | {"json": [{}] * 6})
    with pytest.raises(ValueError, match="token_head=True"):
        SPACE2(bert(), ClipTokenizer(CONTEXT))


# Real tables ----------------------------------------------------------------------------------------------------


def fit(method, data, steps, lr=0.0):
    seen = []
    step = method.training_step
    method.training_step = lambda batch, batch_idx: seen.append((batch, step(batch, batch_idx))) or seen[-1][1]
    method.optimization = Optimization(lr=lr, weight_decay=0.0, warmup=0.0, schedule="constant")
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(method, data)
    return seen


def test_dialog2flow_reads_a_table_and_learns_what_labels_mean(tmp_path):
    """Trained, utterances of like labels are nearer: the order of the similarities of labels is found again."""
    table = tmp_path / "utterances.tsv"
    rows = [(f"{text} {number}", label) for number in range(8) for text, label in zip(TEXTS, LABELS, strict=True)]
    table.write_text("text\tlabels\n" + "".join(f"{text}\t{label}\n" for text, label in rows))
    data = DataModule(str(table), batch_size=6, sampling=PerLabel(samples=2))
    method = dialog2flow(label_temperature=0.1)
    names = sorted(set(LABELS))
    tokenizer = ClipTokenizer(CONTEXT)
    ids = tokenizer.batch(names)
    meaning = method.label_encoder(ids, tokenizer.mask(ids)).pooled

    def fit_of_similarities():
        with torch.no_grad():
            vectors = method.eval().embed({"text": tokenizer.batch(TEXTS), "labels": tokenizer.batch(LABELS)})["text"]
        method.train()
        means = torch.stack([vectors[[label == name for label in LABELS]].mean(0) for name in names])
        units, labels = normalize(means, dim=1), normalize(meaning, dim=1)
        targets = (labels @ labels.T / 0.1).softmax(1)
        return cross_entropy(units @ units.T / 0.05, targets).item()

    before = fit_of_similarities()
    seen = fit(method, data, steps=60, lr=3e-3)
    batch = seen[0][0]
    assert {tokenizer.decode(row[row > 0][1:-1]) for row in batch["labels"]} == set(LABELS)
    assert torch.equal(batch["labels"][::2], batch["labels"][1::2])
    assert fit_of_similarities() < before - 0.5


def test_space2_reads_a_table_of_trees(tmp_path):
    rows = [{"text": text, "tree": tree} for text, tree in zip(TEXTS, TREES, strict=True)]
    (tmp_path / "turns.jsonl").write_text("\n".join(map(json.dumps, rows)))
    seen = fit(space2(), DataModule(str(tmp_path / "turns.jsonl"), batch_size=6), steps=30, lr=3e-3)
    assert any(each["tree"] for each in seen[0][0]["json"])
    losses = [result["terms"]["tree"].item() for _, result in seen]
    assert np.mean(losses[-5:]) < np.mean(losses[:5])


def test_simhand_reads_mined_pairs(tmp_path):
    generator = np.random.default_rng(0)
    poses = generator.random((8, 21, 2))
    rows = []
    for number in range(16):
        pixels = generator.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        rows.append({"image": f"{number}.png", "video": number // 8, "keypoints": poses[number % 8].tolist()})
    (tmp_path / "hands.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = TableSource(tmp_path / "hands.jsonl")
    metadata = [source.row(place) for place in range(len(source))]
    points = torch.tensor([row["keypoints"] for row in metadata])
    table = pose_neighbours(points, torch.tensor([row["video"] for row in metadata]))
    np.save(tmp_path / "neighbours.npy", table.numpy())
    sampling = WithNeighbours(tmp_path / "neighbours.npy")
    seen = fit(simhand(), DataModule(source, batch_size=8, sampling=sampling), steps=2)
    for batch, result in seen:
        assert torch.isfinite(result["loss"])
        for first, second in zip(batch["json"][::2], batch["json"][1::2], strict=True):
            assert first["keypoints"] == second["keypoints"]
            assert first["video"] != second["video"]
