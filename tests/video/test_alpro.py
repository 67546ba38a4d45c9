"""ALPRO as a method: its step, on ranks and in chunks, its weights, image towers in its place, and what it refuses."""

import pytest
import torch

import collimate
from collimate.checkpoints import CheckpointError, save
from collimate.configurable import build
from collimate.data import DataModule, open_source
from collimate.encoders import Bert, TimmImageEncoder
from collimate.evaluation.retrieval import evaluate_retrieval
from collimate.losses.masked_tokens import UNSCORED
from collimate.processing import ClipTokenizer, ImageProcessor
from collimate.testing import assert_cached_equals_full, assert_same_on_ranks
from collimate.training import Optimization
from collimate_video import ALPRO, FrameEncoder, TimeSformer, VideoProcessor

CAPTIONS = ["a dog", "two cats run", "a red ball", "rain", "the sea at night", "it moves left"]
DRAWN = ("negative_video", "negative_text", "masked_text", "masked_labels")


def tokenizer():
    return ClipTokenizer(8)


def tower(**given):
    sizes = {"image_size": 16, "patch_size": 8, "frames": 2, "width": 16, "layers": 1, "heads": 2, "hidden": 16}
    made = TimeSformer(**{**sizes, "drop_path": 0.0, **given})
    torch.nn.init.normal_(made.blocks[0].temporal_fc.weight, std=0.1)
    return made


def bert(**given):
    sizes = {"vocab_size": 49409, "context_length": 8, "width": 16, "layers": 2, "heads": 2, "hidden": 16}
    return Bert(**{**sizes, "fusion_layer": 1, "token_head": True, "dropout": 0.0, **given})


def alpro(**given):
    torch.manual_seed(0)
    parts = {
        "video_encoder": tower(),
        "text_encoder": bert(token_head=given.get("mask_rate", 1) != 0),
        "video_processor": VideoProcessor(2, ImageProcessor(16)),
        "tokenizer": tokenizer(),
    }
    return ALPRO(**{**parts, "embed_dim": 8, **given})


@pytest.fixture
def batch():
    videos = torch.randint(0, 256, (6, 2, 3, 16, 16), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return {"video": videos, "text": tokenizer().batch(CAPTIONS), "position": torch.arange(6)}


@pytest.fixture
def drawn(batch):
    """A batch with everything that is else drawn."""
    masked, labels = batch["text"].clone(), torch.full_like(batch["text"], UNSCORED)
    masked[:, 1], labels[:, 1] = 49408, batch["text"][:, 1]
    wrong = {"negative_video": torch.tensor([1, 2, 0, 4, 5, 3]), "negative_text": torch.tensor([2, 0, 1, 5, 3, 4])}
    return {**batch, "masked_text": masked, "masked_labels": labels, **wrong}


def without(batch, *names):
    return {name: value for name, value in batch.items() if name not in names}


@pytest.mark.parametrize("chunk", [1, 4])
def test_the_gradient_cache_changes_nothing(drawn, chunk):
    method = alpro()

    def run(chunk):
        method.gradient_cache = chunk
        return method.total_loss(method.loss_terms(drawn))

    assert_cached_equals_full(lambda: run(None), lambda: run(chunk), dict(method.named_parameters()), tolerance=1e-4)


def test_on_ranks(drawn):
    """Contrast reaches over all ranks; wrong pairs are drawn on each, here the same ones."""
    method = alpro(temperature=0.5)
    with torch.no_grad():
        rows = method.embed(drawn)
    mask, wrong = rows.pop("text_mask"), {name: drawn[name] for name in ("negative_video", "negative_text")}

    def loss(number, **rows):
        here = {name: value[number] - number[0] for name, value in wrong.items()}
        return torch.stack(list(method.losses({**rows, "text_mask": mask[number]}, here).values())).sum()

    assert_same_on_ranks(loss, {"number": torch.arange(6), **rows}, splits=[[3, 3]], tolerance=1e-4)


def test_every_parameter_learns(drawn):
    for method in (alpro(), alpro(mask_rate=0.0)):
        method.total_loss(method.loss_terms(drawn)).backward()
        assert not [name for name, parameter in method.named_parameters() if parameter.grad is None]
        held = {id(p) for group in Optimization().optimizer(method).param_groups for p in group["params"]}
        assert held == {id(parameter) for parameter in method.parameters()}


def test_without_draws_in_the_batch_they_are_made(drawn):
    bare = without(drawn, *DRAWN)
    assert set(alpro().loss_terms(bare)) == {"vtc", "vtm", "mlm"}
    assert set(alpro(mask_rate=0.0).loss_terms(bare)) == {"vtc", "vtm"}
    assert all(torch.isfinite(term) and term.requires_grad for term in alpro().loss_terms(bare).values())


def test_only_words_are_hidden(batch):
    method = alpro(mask_rate=0.9)
    real = method.processors["text"].mask(batch["text"])
    seen = False
    for _ in range(5):
        _, labels = method._masked_text(batch, real)
        assert (labels[:, 0] == UNSCORED).all()
        assert (labels[~real] == UNSCORED).all()
        assert (labels[torch.arange(6), real.sum(1) - 1] == UNSCORED).all()  # the end of each text
        seen |= bool((labels != UNSCORED).any())
    assert seen


def test_a_batch_without_a_hidden_token_costs_nothing(drawn):
    terms = alpro().loss_terms({**drawn, "masked_labels": torch.full_like(drawn["text"], UNSCORED)})
    assert float(terms["mlm"].detach()) == 0


def test_the_temperature_is_held():
    method = alpro(temperature_bounds=(0.05, 0.1))
    with torch.no_grad():
        method.temp.fill_(3.0)
    method.after_optimizer_step()
    assert float(method.temp) == pytest.approx(0.1)
    assert float(method.logit_scale.detach().exp()) == pytest.approx(10)


def test_reranking_ranks_as_the_probability_does(drawn):
    method = alpro().eval()
    video, text = method.encode("video", drawn["video"]), method.encode("text", drawn["text"])
    seen = []
    method.itm_head.register_forward_hook(lambda module, inputs, output: seen.append(output))
    odds = method.rerank(video, text)
    torch.testing.assert_close(odds.sigmoid(), seen[0].softmax(1)[:, 1])
    assert video.tokens.shape == (6, 1 + 4, 16)
    assert (video.grid, video.prefix) == ((2, 2), 1)


def test_saved_and_loaded(tmp_path, drawn):
    method = alpro().eval()
    save(method, tmp_path / "model")
    again = collimate.load(tmp_path / "model").eval()
    assert torch.equal(again("video", drawn["video"].float()).pooled, method("video", drawn["video"].float()).pooled)
    begun = alpro(pretrained=str(tmp_path / "model"), mask_rate=0.0)
    assert torch.equal(begun.itm_head.weight, method.itm_head.weight)
    assert "pretrained" not in begun.config()["init_args"]
    assert build(method.config()).config() == method.config()


def official(method):
    """A method's weights by the released names, with a teacher beside."""
    names = (
        ("encoders.video.", "visual_encoder.model."),
        ("encoders.text.cls.", "text_encoder.cls."),
        ("encoders.text.", "text_encoder.bert."),
        ("projections.video.linear.", "vision_proj."),
        ("projections.text.linear.", "text_proj."),
    )
    weights = {}
    for name, value in method.state_dict().items():
        ours, theirs = next(((o, t) for o, t in names if name.startswith(o)), ("", ""))
        weights[theirs + name.removeprefix(ours)] = value.clone()
    return {**weights, "prompter.temp": torch.tensor(0.1), "visual_encoder.model.head.weight": torch.zeros(400, 16)}


def test_released_weights_load(tmp_path, drawn):
    method = alpro().eval()
    torch.save({"model": official(method)}, tmp_path / "alpro.pt")
    again = ALPRO.from_official(tmp_path / "alpro.pt", tokenizer=tokenizer(), heads=2, fusion_layer=1)
    inputs = method.processors["video"].finish(drawn["video"])
    assert torch.equal(again("video", inputs).pooled, method("video", inputs).pooled)
    assert (again.processors["video"].frames, again.processors["video"].size) == (2, 16)
    tuned = {name: value for name, value in official(method).items() if ".cls." not in name}
    assert ALPRO.from_official(tuned, tokenizer=tokenizer(), heads=2).mask_rate == 0


def test_other_weights_are_refused():
    weights = official(alpro())
    with pytest.raises(CheckpointError, match=r"vision_proj|projections.video"):
        ALPRO.from_official({k: v for k, v in weights.items() if k != "vision_proj.weight"}, tokenizer=tokenizer())
    with pytest.raises(CheckpointError, match="extra"):
        ALPRO.from_official({**weights, "extra": torch.zeros(1)}, tokenizer=tokenizer())
    with pytest.raises(CheckpointError, match="TimeSformer"):
        ALPRO.from_official({"a": torch.zeros(1)}, tokenizer=tokenizer())


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"text_encoder": bert(fusion_layer=None)}, "fusion_layer"),
        ({"text_encoder": bert(cross_width=16)}, "cross_width"),
        ({"video_encoder": tower(width=32)}, "width"),
        ({"mask_rate": 1.0}, "share of the tokens"),
        ({"text_encoder": bert(token_head=False)}, "token head"),
    ],
)
def test_parts_that_do_not_fit(wrong, told):
    with pytest.raises(ValueError, match=told):
        alpro(**wrong)


def test_a_lone_sample_can_be_validated_but_not_trained_on(drawn):
    lone = {name: value[:1] for name, value in without(drawn, *DRAWN).items()}
    assert all(torch.isfinite(term) for term in alpro().eval().loss_terms(lone).values())
    with pytest.raises(ValueError, match="at least 2 a rank"):
        alpro().loss_terms(lone)


def test_any_image_tower_can_see_the_frames(drawn):
    sizes = {"patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
    images = TimmImageEncoder("vit_base_patch16_224", image_size=16, model_args=sizes)
    frames = FrameEncoder(images).eval()
    clips = torch.randn(2, 3, 3, 16, 16)
    found, single = frames(clips), images(clips[:, 1])
    assert found.grid == (3, 2, 2)
    torch.testing.assert_close(found.tokens[:, 4:8], single.tokens)
    torch.testing.assert_close(found.pooled, torch.stack([images(clips[:, t]).pooled for t in range(3)]).mean(0))
    with pytest.raises(ValueError, match="Clips are"):
        frames(clips[0])
    assert torch.isfinite(alpro(video_encoder=frames).loss_terms(drawn)["vtm"])


def test_it_learns_from_the_moving_world():
    """A few steps on one batch of clips lower the loss; both rankings are reported."""
    method = alpro()
    data = DataModule(train="world-clip:train?frames=4&size=16&length=32", batch_size=16, augmentations={})
    loader = data_loader(data, method)
    batch = next(iter(loader))
    optimizer = torch.optim.Adam(method.parameters(), 2e-3)
    losses = []
    for _ in range(80):
        optimizer.zero_grad()
        loss = method.loss_terms(batch)["vtc"]
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.75 * losses[0]
    source = open_source("world-clip:test?frames=4&size=16&length=24")
    found = evaluate_retrieval(method.eval(), source, resamples=2, rerank=4)
    assert {"video_retrieval_recall@5", "reranked_video_retrieval_recall@5"} <= found.metrics.keys()


def data_loader(data, method):
    class Trainer:
        lightning_module = method

    data.trainer = Trainer()
    return data.train_dataloader()
