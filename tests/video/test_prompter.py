"""ALPRO's prompter: its own training, boxes, a frozen twin's labels, what they ask of the student, what is refused."""

import pytest
import torch
from torch.nn.functional import normalize

import collimate
from collimate.checkpoints import CheckpointError, save
from collimate.configurable import build
from collimate.processing import ImageProcessor
from collimate.testing import assert_cached_equals_full, assert_same_on_ranks, oracles
from collimate.training import Optimization
from collimate_video import ALPRO, EntityPrompter, Prompter, VideoProcessor
from collimate_video.alpro.crops import AREA, RATIO, cropped, draw_boxes
from collimate_video.alpro.entities import IMAGE_TEMPLATES, VIDEO_TEMPLATES, inside, stands_still

from .test_alpro import alpro, batch, bert, drawn, official, tokenizer, tower  # noqa: F401 - fixtures

ENTITIES = ["dog", "cat", "ball", "rain"]


def prompter(**given):
    torch.manual_seed(1)
    parts = {
        "video_encoder": tower(),
        "text_encoder": bert(fusion_layer=None, token_head=False, layers=1),
        "video_processor": VideoProcessor(2, ImageProcessor(16)),
        "tokenizer": tokenizer(),
    }
    return Prompter(**{**parts, "embed_dim": 8, **given})


def named(**given):
    return EntityPrompter(prompter(), **{"entities": ENTITIES, "threshold": 0.0, **given})


def with_boxes(drawn):  # noqa: F811
    boxes = torch.zeros(6, 2, 2, dtype=torch.bool)
    boxes[:, 0], boxes[3:, 1, 0] = True, True
    return {**drawn, "boxes": boxes}


# The prompter ---------------------------------------------------------------------------------------------------


def test_its_loss_is_the_contrast_alone(batch):  # noqa: F811
    method = prompter()
    terms = method.loss_terms(batch)
    rows = {name: each.detach().double() for name, each in method.embed(batch).items()}
    wanted = oracles.clip_loss(rows["video"], rows["text"], 1 / method.temp.detach().double())
    assert set(terms) == {"vtc"}
    torch.testing.assert_close(terms["vtc"].double(), wanted, rtol=1e-5, atol=1e-6)
    terms["vtc"].backward()
    assert not [name for name, parameter in method.named_parameters() if parameter.grad is None]
    with torch.no_grad():
        method.temp.fill_(3.0)
    method.after_optimizer_step()
    assert float(method.temp.detach()) == 0.5


def test_what_a_bert_has_beyond_its_text_layers_does_not_learn(batch):  # noqa: F811
    method = prompter(text_encoder=bert(token_head=False))
    method.loss_terms(batch)["vtc"].backward()
    learning = {name for name, parameter in method.named_parameters() if parameter.requires_grad}
    assert learning == {name for name, parameter in method.named_parameters() if parameter.grad is not None}
    assert "encoders.text.encoder.layer.0.output.dense.weight" in learning
    assert "encoders.text.encoder.layer.1.output.dense.weight" not in learning


def test_its_contrast_on_ranks(batch):  # noqa: F811
    method = prompter()
    rows = {name: each.detach() for name, each in method.embed(batch).items()}
    assert_same_on_ranks(lambda **rows: method.losses(rows, {})["vtc"], rows, splits=[[2, 4]], tolerance=1e-4)


def test_it_is_saved_loaded_and_begun_with(tmp_path, batch):  # noqa: F811
    method = prompter().eval()
    save(method, tmp_path / "prompter")
    wanted = method.encode("video", batch["video"]).pooled
    for again in (collimate.load(tmp_path / "prompter"), prompter(pretrained=str(tmp_path / "prompter"))):
        assert torch.equal(again.eval().encode("video", batch["video"]).pooled, wanted)
        assert "pretrained" not in again.config()["init_args"]
    with pytest.raises(CheckpointError, match="Prompter"):
        prompter(embed_dim=4, pretrained=str(tmp_path / "prompter"))


def test_released_weights_load_alone_or_within_an_alpro(batch):  # noqa: F811
    student = official(alpro())
    teacher = {f"prompter.{name}": 2 * value for name, value in student.items() if not name.startswith("prompter.")}
    within = {**student, **teacher}
    settings = {"tokenizer": tokenizer(), "heads": 2, "fusion_layer": 1}
    alone = Prompter.from_official(
        {name.removeprefix("prompter."): value for name, value in teacher.items()}, **settings
    )
    both = Prompter.from_official(within, **settings)
    assert len(both.encoders["text"].layers) == 1
    clip = torch.randn(2, 2, 3, 16, 16)
    assert torch.equal(alone("video", clip).pooled, both("video", clip).pooled)
    assert float(both.temp.detach()) == pytest.approx(2 * 0.07)
    with pytest.raises(CheckpointError, match="mpm_head"):
        ALPRO.from_official(within, entities=ENTITIES, **settings)


# Boxes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [(14, 14), (6, 9), (2, 2), (1, 1)])
def test_boxes_are_rectangles_within_the_frame_of_the_papers_sizes(grid):
    boxes = draw_boxes(200, grid, torch.Generator().manual_seed(0))
    assert boxes.shape == (200, *grid)
    for box in boxes:
        rows, columns = box.any(1).nonzero().flatten(), box.any(0).nonzero().flatten()
        height, width = (int(each[-1] - each[0]) + 1 for each in (rows, columns))
        assert int(box.sum()) == height * width > 0
        if grid == (14, 14):
            assert height * width <= AREA[1] * 196
            assert (height + 1) * (width + 1) > AREA[0] * 196  # they are rounded down
            assert RATIO[0] < (height + 1) / width
            assert height / (width + 1) < RATIO[1]
    different = len({tuple(box.flatten().tolist()) for box in boxes})
    assert different == 1 if grid == (1, 1) else different > 2


def test_crops_keep_their_place_and_are_black_elsewhere():
    clips = torch.randint(1, 256, (2, 3, 3, 16, 24), dtype=torch.uint8)
    boxes = torch.zeros(2, 2, 3, dtype=torch.bool)
    boxes[0, 1, 1:], boxes[1, 0, 0] = True, True
    crops = cropped(clips, boxes)
    assert torch.equal(crops[0, :, :, 8:, 8:], clips[0, :, :, 8:, 8:])
    assert int((crops[0] != 0).sum()) == 3 * 3 * 8 * 16
    assert crops.dtype == torch.uint8
    with pytest.raises(ValueError, match="do not divide"):
        cropped(clips, torch.ones(2, 3, 3, dtype=torch.bool))


def test_the_tokens_in_a_box_are_averaged():
    tokens = torch.arange(7.0).view(1, 7, 1).expand(2, -1, 2)
    boxes = torch.tensor([[True, False, True, False], [False, False, False, True]])
    assert inside(tokens, boxes)[:, 0].tolist() == [4.0, 6.0]  # of the last four


# Labels ---------------------------------------------------------------------------------------------------------


def test_labels_are_the_softmax_over_means_of_unit_prompts(batch):  # noqa: F811
    teacher = named()
    twin, words = teacher.prompter, tokenizer()
    found = teacher(batch["video"], torch.tensor([False, True, False, False, False, False]))
    with torch.no_grad():
        crop = normalize(twin.encode("video", batch["video"]).pooled, dim=1)
        means = {}
        for kind, templates in (("video", VIDEO_TEMPLATES), ("image", IMAGE_TEMPLATES)):
            assert len(set(templates)) == 12
            texts = [words.batch([each.format(entity) for each in templates]) for entity in ENTITIES]
            means[kind] = torch.stack([normalize(twin.encode("text", each).pooled, dim=1).mean(0) for each in texts])
        for row in range(6):
            wanted = (crop[row] @ means["image" if row == 1 else "video"].T / twin.temp).softmax(0)
            torch.testing.assert_close(found.labels[row], wanted, rtol=1e-4, atol=1e-6)
    assert float(means["video"].norm(dim=1).max()) < 1


@pytest.mark.parametrize(("mode", "kept"), [("probability", [True, False, True]), ("official", [True, True, False])])
def test_who_is_left_out(mode, kept):
    """By the likeliest entity's probability; officially by its number, so that only number 0 is left out."""
    teacher = named(threshold=0.5, threshold_mode=mode)
    labels = torch.tensor([[0.1, 0.6, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.1, 0.1]])
    assert (~teacher._ignored(labels)).tolist() == kept


def test_the_twin_is_frozen_and_still(drawn):  # noqa: F811
    method = alpro(prompter=named()).train()
    before = {name: each.clone() for name, each in method.prompter.prompter.state_dict().items()}
    assert not any(module.training for module in method.prompter.prompter.modules())
    terms = method.loss_terms(with_boxes(drawn))
    assert set(terms) == {"vtc", "vtm", "mlm", "pem"}
    method.total_loss(terms).backward()
    learning = {name for name, parameter in method.named_parameters() if parameter.grad is not None}
    assert learning == {name for name, _ in method.named_parameters() if not name.startswith("prompter.")}
    optimizer = Optimization(lr=0.1).optimizer(method)
    optimizer.step()
    assert all(torch.equal(each, before[name]) for name, each in method.prompter.prompter.state_dict().items())


def test_the_loss_is_the_cross_entropy_with_soft_labels_over_what_is_kept(drawn):  # noqa: F811
    full = with_boxes(drawn)
    method = alpro(prompter=named())
    rows = method.embed(full)
    rows["entities_kept"] = torch.tensor([True, False, True, True, False, False])
    own = {name: rows[name] for name in ("video_tokens", "text_tokens", "text_mask", "boxes")}
    logits = method._match(own)["entities"]
    wanted = -(rows["entities"] * logits.log_softmax(1)).sum(1)[rows["entities_kept"]].mean()
    torch.testing.assert_close(method.losses(rows, full)["pem"], wanted, rtol=1e-5, atol=1e-6)
    rows["entities_kept"] = torch.zeros(6, dtype=torch.bool)
    assert float(method.losses(rows, full)["pem"].detach()) == 0


def test_the_gradient_cache_changes_nothing(drawn):  # noqa: F811
    method, full = alpro(prompter=named()), with_boxes(drawn)

    def run(chunk):
        method.gradient_cache = chunk
        return method.loss_terms(full)["pem"]

    assert_cached_equals_full(lambda: run(None), lambda: run(4), dict(method.named_parameters()), tolerance=1e-4)


def test_on_ranks_what_is_kept_counts_together(drawn):  # noqa: F811
    full = with_boxes(drawn)
    method = alpro(prompter=named())
    with torch.no_grad():
        rows = method.embed(full)
    fixed = {name: rows.pop(name) for name in ("text_mask", "boxes")}
    fixed["entities_kept"] = torch.tensor([True, False, True, True, True, True])
    del rows["entities_kept"]
    wrong = {name: full[name] for name in ("negative_video", "negative_text")}

    def loss(number, **rows):
        here = {name: value[number] - number[0] for name, value in wrong.items()}
        return method.losses({**rows, **{name: each[number] for name, each in fixed.items()}}, here)["pem"]

    assert_same_on_ranks(loss, {"number": torch.arange(6), **rows}, splits=[[3, 3]], tolerance=1e-4)


def test_pictures_are_told_from_clips():
    moving = torch.randint(0, 256, (1, 3, 3, 8, 8), dtype=torch.uint8)
    assert stands_still(torch.cat([moving, moving[:, :1].expand(-1, 3, -1, -1, -1)])).tolist() == [False, True]


# Entities and folders -------------------------------------------------------------------------------------------


def test_a_saved_model_has_its_entities_and_their_prompts(tmp_path, drawn):  # noqa: F811
    file = tmp_path / "entities.txt"
    file.write_text("dog 9\ncat 5\n\nball 4\ndog 2\nrain 1\n")
    method = alpro(prompter=named(entities=str(file), count=3)).eval()
    assert method.prompter.entities == ["dog", "cat", "ball"]
    wanted = method.loss_terms(with_boxes(drawn))["pem"]
    save(method, tmp_path / "model")
    file.unlink()
    again = collimate.load(tmp_path / "model").eval()
    assert torch.equal(again.prompter.video_prompt_feat, method.prompter.video_prompt_feat)
    assert bool(again.prompter.video_prompt_feat.any())
    torch.testing.assert_close(again.loss_terms(with_boxes(drawn))["pem"], wanted)
    assert build(method.config()).config() == method.config()
    tuned = alpro(pretrained=str(tmp_path / "model"), mask_rate=0.0)  # without the twin
    assert torch.equal(tuned.itm_head.weight, method.itm_head.weight)
    with pytest.raises(CheckpointError, match=r"mpm_head|prompt"):
        alpro(prompter=named(entities=["one", "other"]), pretrained=str(tmp_path / "model"))


def test_entities_that_cannot_be():
    with pytest.raises(ValueError, match="two or more"):
        named(entities=["dog"])
    with pytest.raises(ValueError, match="none twice"):
        named(entities=["dog", "dog"])
    with pytest.raises(ValueError, match="threshold_mode"):
        named(threshold_mode="sometimes")
    with pytest.raises(FileNotFoundError, match="collimate video entities"):
        named(entities="nowhere.txt")
