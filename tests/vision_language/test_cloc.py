"""CLOC: the prompter against torch's layer, its loss term by term, missing regions, ranks, chunks, export."""

import json

import pytest
import torch
from lightning.pytorch import Trainer

import collimate
from collimate.checkpoints import CheckpointError, export, save
from collimate.checkpoints.open_clip import to_open_clip
from collimate.configurable import build
from collimate.data import DataModule, RegionChoice, Source, open_source
from collimate.encoders import OpenClipImageEncoder, OpenClipTextEncoder, TimmImageEncoder
from collimate.encoding import Encoding
from collimate.evaluation import Report, evaluate_localization, evaluate_regions
from collimate.losses import clip_loss, region_text_loss
from collimate.processing import ClipTokenizer, ImageProcessor
from collimate.testing import assert_cached_equals_full, assert_close, assert_same_on_ranks, assert_saved_memory_below
from collimate.training import Optimization
from collimate_vision_language import CLIP, CLOC
from collimate_vision_language.cloc import AttentionPrompter, RoIAlignPrompter

from .test_methods import fit

WIDTH, DIM = 32, 16
WHOLE = [0.0, 0.0, 1.0, 1.0]


def cloc(method=CLOC, **given):
    torch.manual_seed(0)
    parts = {
        "image_encoder": OpenClipImageEncoder(width=WIDTH, layers=1, image_size=32, patch_size=8, head_width=16),
        "text_encoder": OpenClipTextEncoder(width=32, heads=2, layers=1, context_length=16),
        "image_processor": ImageProcessor(32, resize="longest"),
        "tokenizer": ClipTokenizer(16),
        "embed_dim": DIM,
    }
    return method(**{**parts, **given})


def roi_cloc(**given):
    return cloc(prompter=RoIAlignPrompter(WIDTH), grounding=False, **given)


@pytest.fixture
def regions(batch):
    """Three, one, no, two, no and one regions; two of them share their words."""
    counts = torch.tensor([3, 1, 0, 2, 0, 1])
    given = torch.arange(3) < counts[:, None]
    corners = torch.rand(6, 3, 4, generator=torch.Generator().manual_seed(3)) * 0.4
    boxes = torch.where(given[..., None], corners + torch.tensor([0.0, 0.0, 0.5, 0.5]), torch.tensor(WHOLE))
    words = ["a dog", "its tail", "grass", "a cat", "a ball", "red", "a dog"]
    texts = ClipTokenizer(16).batch([""] * 18).unflatten(0, (6, 3))
    texts[given] = ClipTokenizer(16).batch(words)
    return batch | {"regions": boxes, "region_text": texts, "region_given": given}


# The prompter -----------------------------------------------------------------------------------------------------


def random_prompter(**given):
    torch.manual_seed(1)
    prompter = AttentionPrompter(WIDTH, DIM, **given).double()
    for parameter in prompter.parameters():
        torch.nn.init.normal_(parameter, 0.1, 0.3)
    return prompter


def by_torch(prompter, tokens, prompts):
    """torch's own layer over prompt and picture, one prompt after the other."""
    rows = []
    for picture, own in zip(tokens, prompts, strict=True):
        outputs = [prompter.layer(torch.cat([prompt, picture])[None])[0] for prompt in own]
        rows.append(torch.stack([each[len(own[0]) * (prompter.pool == "image") :].mean(0) for each in outputs]))
    return torch.stack(rows)


@pytest.mark.parametrize("pool", ["all", "image"])
@pytest.mark.parametrize("kind", ["boxes", "texts"])
def test_a_picture_seen_once_is_the_transformer_layer_for_each_prompt(pool, kind):
    prompter = random_prompter(pool=pool)
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randn(2, 7, WIDTH, generator=draw, dtype=torch.float64)
    prompts = torch.rand(2, 3, 4 if kind == "boxes" else DIM, generator=draw, dtype=torch.float64)

    def ours(tokens, prompts):
        seen = prompter.see(tokens, None)
        return prompter.by_boxes(seen, prompts) if kind == "boxes" else prompter.by_texts(seen, prompts)

    def torchs(tokens, prompts):
        as_tokens = prompter.box_tokens(prompts) if kind == "boxes" else prompter.text_prompt(prompts)[:, :, None]
        return by_torch(prompter, tokens, as_tokens)

    results = []
    for run in (ours, torchs):
        leaves = {"tokens": tokens.clone().requires_grad_(), "prompts": prompts.clone().requires_grad_()}
        value = run(**leaves)
        leaves |= {name: each for name, each in prompter.named_parameters() if "text" not in name and name != "corners"}
        gradients = torch.autograd.grad((value * torch.linspace(-1, 1, WIDTH)).sum(), list(leaves.values()))
        results.append({"vectors": value, **dict(zip(leaves, gradients, strict=True))})
    assert_close(*results, 1e-6 if kind == "boxes" else 1e-9, "shared against layer by layer")  # waves are float32


def test_half_precision_is_near():
    torch.manual_seed(0)
    prompter, boxes, texts = AttentionPrompter(WIDTH, DIM), torch.rand(2, 3, 4), torch.randn(2, 3, DIM)
    tokens = torch.randn(2, 7, WIDTH, requires_grad=True)

    def run():
        seen = prompter.see(tokens, None)
        return torch.cat([prompter.by_boxes(seen, boxes), prompter.by_texts(seen, texts)], 1)

    with torch.autocast("cpu", torch.bfloat16):
        half = run()
    half.float().sum().backward()
    assert tokens.grad.isfinite().all()
    assert (half - run()).norm() < 0.02 * half.norm()


def test_box_tokens_by_hand():
    prompter = AttentionPrompter(8, DIM, corner_vectors=False)
    found = prompter.box_tokens(torch.tensor([[[0.25, 0.5, 1.0, 0.75]]]))[0, 0]
    x, y = 2 * torch.pi * torch.tensor([0.25, 1.0]), 2 * torch.pi * torch.tensor([0.5, 0.75])
    rows = [torch.stack([f(a * w) for a in (x, y) for f in (torch.sin, torch.cos) for w in (1.0, 0.01)], 1)]
    torch.testing.assert_close(found, rows[0], rtol=0, atol=1e-6)
    cornered = AttentionPrompter(8, DIM)
    torch.testing.assert_close(
        cornered.box_tokens(torch.zeros(1, 1, 4))[0, 0] - found * 0, cornered.corners + cosines()
    )


def cosines():
    """The waves at the origin."""
    return torch.tensor([0.0, 0.0, 1.0, 1.0]).repeat(2, 2)


def test_tokens_may_be_told_their_places():
    """Each is as the middle of a box without extent; a class token in front has none."""
    placed, plain = (AttentionPrompter(8, DIM, token_places=there) for there in (True, False))
    plain.load_state_dict(placed.state_dict())
    tokens, boxes = torch.randn(2, 7, 8), torch.rand(2, 3, 4)
    centres = torch.tensor(
        [[0.25, 0.5 / 3], [0.75, 0.5 / 3], [0.25, 0.5], [0.75, 0.5], [0.25, 2.5 / 3], [0.75, 2.5 / 3]]
    )
    waves = plain.box_tokens(centres.repeat(1, 2)[None])[0, :, 0] - plain.corners[0]
    moved = torch.cat([tokens[:, :1], tokens[:, 1:] + waves], 1)
    found = placed.by_boxes(placed.see(tokens, (3, 2)), boxes)
    torch.testing.assert_close(found, plain.by_boxes(plain.see(moved, None), boxes))
    with pytest.raises(ValueError, match="without dropped patches"):
        placed.see(tokens, None)


def test_roi_align_is_the_mean_of_the_cells_in_the_box():
    prompter, draw = RoIAlignPrompter(WIDTH, output_size=2), torch.Generator().manual_seed(0)
    tokens = torch.randn(1, 16, WIDTH, generator=draw)
    boxes = torch.tensor([[[0.0, 0.0, 0.5, 1.0], WHOLE]])
    found = prompter.by_boxes(prompter.see(torch.full_like(tokens, 2.5), (4, 4)), boxes)
    torch.testing.assert_close(found, torch.full((1, 2, WIDTH), 2.5))
    left = tokens.unflatten(1, (4, 4))[:, :, :2].flatten(1, 2).mean(1)
    right = tokens.unflatten(1, (4, 4))[:, :, 2:].flatten(1, 2).mean(1)
    half = prompter.by_boxes(prompter.see(tokens, (4, 4)), boxes)[:, 0]
    assert (half - left).norm() < 0.5 * (half - right).norm()


# The method -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"own_region_scale": True, "box_head_input": "pooled", "similar": None}])
def test_the_loss_is_the_papers(regions, options):
    method = cloc(**options)
    terms = method.loss_terms(regions)
    image = method.encode("image", regions["image"])
    texts = method.encode("text", regions["text"]).pooled
    given, scale = regions["region_given"], method.logit_scale.exp()
    vectors, phrases, errors = [], [], []
    for (picture, box), words in zip(given.nonzero().tolist(), regions["region_text"][given], strict=True):
        one = Encoding(image.pooled[[picture]], image.tokens[[picture]])
        vectors.append(method.prompt(one, regions["regions"][picture, box][None])[0, 0])
        phrases.append(method.encode("text", words[None]).pooled[0])
        found = method.ground(one, Encoding(phrases[-1][None]))[0, 0]
        errors.append((found - regions["regions"][picture, box]).square().sum() / 4)
    share = 4 / 6
    contrast = region_text_loss(torch.stack(vectors), torch.stack(phrases), scale, options.get("similar", 0.9))
    expected = {
        "clip": clip_loss(image.pooled, texts, scale),
        "region_text": share * contrast,
        "grounding": share * torch.stack(errors).mean(),
    }
    assert_close(terms, expected, 1e-5, "the method against the equations")
    assert method.statistics["regions/share of pictures"] == pytest.approx(share)
    assert method.statistics["regions/a picture"] == pytest.approx(7 / 6)


def test_regions_with_the_same_words_are_no_negatives(regions):
    method = cloc()
    method.loss_terms(regions)
    assert method.statistics["regions/negatives kept"] < 1
    assert cloc(similar=None).loss_terms(regions)["region_text"] > method.loss_terms(regions)["region_text"]


def test_rows_that_are_no_regions_move_nothing(regions):
    other = {**regions, "regions": regions["regions"].clone(), "region_text": regions["region_text"].clone()}
    other["regions"][~regions["region_given"]] = torch.tensor([0.1, 0.2, 0.3, 0.9])
    other["region_text"][~regions["region_given"]] = other["region_text"][0, 0].clone()
    method = cloc()
    torch.testing.assert_close(method.loss_terms(regions), method.loss_terms(other), rtol=0, atol=0)


@pytest.mark.parametrize("keys", [True, False])
@pytest.mark.parametrize("make", [cloc, roi_cloc])
def test_without_regions_it_is_clip_and_every_weight_has_a_gradient_of_zero(batch, regions, keys, make):
    method = make()
    none = {**regions, "region_given": torch.zeros(6, 3, dtype=torch.bool)} if keys else batch
    terms = method.loss_terms(none)
    method.total_loss(terms).backward()
    assert all(terms[name] == 0 for name in terms if name != "clip")
    plain = cloc(CLIP)
    plain.load_state_dict({name: method.state_dict()[name] for name in plain.state_dict()})
    torch.testing.assert_close(terms["clip"], plain.loss_terms(batch)["clip"])
    missing = [name for name, parameter in method.named_parameters() if parameter.grad is None]
    assert [name for name in missing if not name.startswith("encoders.")] == []
    of_prompter = [p.grad for name, p in method.named_parameters() if name.startswith(("prompter", "region", "box"))]
    assert of_prompter
    assert all((gradient == 0).all() for gradient in of_prompter)


def loss_of_the_method(image, text, region, region_text, box, regions, given):
    method = cloc()
    embeddings = {"image": image, "text": text, "region": region, "region_text": region_text, "box": box}
    batch = {"regions": regions, "region_text": region_text, "region_given": given}
    return method.total_loss(method.losses(embeddings, batch))


@pytest.mark.slow  # for each rank imports the whole package; `tests/core/losses/test_regions.py` asks the losses alone
def test_unequal_regions_are_exact_across_ranks(regions):
    """On some ranks no picture has a region."""
    rows = {name: value.detach() for name, value in cloc().embed(regions).items()}
    rows = {**rows, "regions": regions["regions"], "given": regions["region_given"]}
    splits = [[3, 3], [2, 4], [2, 1, 3], [4, 1, 1], [6, 0]]
    assert_same_on_ranks(loss_of_the_method, rows, splits=splits, tolerance=1e-5)


@pytest.mark.parametrize("make", [cloc, roi_cloc])
def test_the_gradient_cache_and_parts_change_nothing(regions, make):
    method = make()

    def loss(chunk, at_a_time):
        method.gradient_cache, method.prompts_at_a_time = chunk, at_a_time
        return method.total_loss(method.loss_terms(regions))

    parameters = dict(method.named_parameters())
    for chunk, at_a_time in ((2, 64), (None, 3), (4, 1)):
        assert_cached_equals_full(
            lambda: loss(None, 64), lambda c=chunk, n=at_a_time: loss(c, n), parameters, tolerance=1e-5
        )


def test_parts_bound_the_memory_of_prompts():
    torch.manual_seed(0)
    method = cloc(prompts_at_a_time=8)
    rows = {"tokens": torch.randn(32, 17, WIDTH), "boxes": torch.tensor(WHOLE).expand(32, 4, 4)}
    rows |= {"texts": torch.randn(32, 4, DIM), "grid": None}
    rows["tokens"].requires_grad_()
    a_prompt = 17 * 4 * WIDTH * 4  # bytes of its hidden layer
    run = lambda: sum(value.sum() for value in method._prompted_in_parts(rows).values())  # noqa: E731
    assert_saved_memory_below(32 * a_prompt, run, existing=[rows["tokens"], *method.parameters()])


# Users' calls -----------------------------------------------------------------------------------------------------


def test_prompts_are_asked_in_any_form_and_number(regions):
    method = cloc(prompts_at_a_time=5).eval()
    image = method.encode("image", regions["image"])
    boxes = torch.tensor([[0.1, 0.2, 0.6, 0.9], WHOLE, [0.0, 0.0, 0.5, 0.5]])
    found = method.prompt(image, boxes)
    assert found.shape == (6, 3, DIM)
    torch.testing.assert_close(method.prompt(image, boxes.expand(6, -1, -1)), found)
    many = method.prompt(image, boxes.repeat(4, 1))
    torch.testing.assert_close(many[:, 9:], found, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found[:, 0], found[:, 1], atol=1e-4)
    texts = ["a dog", "two cats"]
    torch.testing.assert_close(method.prompt(image, texts), method.prompt(image, method.encode("text", texts)))
    assert method.ground(image, texts).shape == (6, 2, 4)
    assert method.prompt(image, torch.empty(0, 4)).shape == (6, 0, DIM)


@pytest.mark.parametrize("make", [cloc, roi_cloc])
def test_a_map_asks_each_cell_about_each_text(regions, make):
    method = make().eval()
    image, text = method.encode("image", regions["image"]), method.encode("text", ["a dog", "two cats"])
    found = method.localization_map(image, text)
    assert found.shape == (6, 2, 16)
    box = torch.tensor([[1.5, 0.5, 3.5, 2.5]]) / 4  # about the cell in row 1, column 2
    expected = torch.cosine_similarity(method.prompt(image, box), text.pooled[1], dim=-1)[:, 0]
    torch.testing.assert_close(found[:, 1, 6], expected)
    assert evaluate_localization(method, open_source("world:test?objects=2&length=6"), device="cpu", resamples=2)
    with pytest.raises(ValueError, match="no grid"):
        method.localization_map(Encoding(image.pooled, image.tokens), text)


def test_bad_prompts_are_named(regions):
    method, roi = cloc().eval(), roi_cloc().eval()
    image = method.encode("image", regions["image"])
    with pytest.raises(ValueError, match=r"got \[0.0, 0.0, 32.0, 32.0\].*Divide pixels"):
        method.prompt(image, torch.tensor([WHOLE, [0.0, 0.0, 32.0, 32.0]]))
    with pytest.raises(ValueError, match="x0 < x1"):
        method.prompt(image, torch.tensor([[0.5, 0.0, 0.5, 1.0]]))
    with pytest.raises(ValueError, match="nan"):
        method.prompt(image, torch.tensor([[0.5, torch.nan, 0.6, 1.0]]))
    with pytest.raises(ValueError, match=r"got \(6, 3\)"):
        method.prompt(image, torch.zeros(6, 3))
    with pytest.raises(ValueError, match="what `encode"):
        method.prompt(Encoding(image.pooled), torch.tensor([WHOLE]))
    with pytest.raises(TypeError, match="boxes alone"):
        roi.prompt(roi.encode("image", regions["image"]), ["a dog"])
    with pytest.raises(ValueError, match="without grounding"):
        roi.ground(image, ["a dog"])


def test_parts_that_do_not_fit_are_refused(batch):
    with pytest.raises(ValueError, match="set `grounding` to false"):
        cloc(prompter=RoIAlignPrompter(WIDTH))
    with pytest.raises(ValueError, match="of width 64, the image tower of 32"):
        cloc(prompter=AttentionPrompter(64, DIM))
    with pytest.raises(ValueError, match="multiple of 4, not 30"):
        AttentionPrompter(30, DIM)
    with pytest.raises(ValueError, match="at least 1, not 0"):
        cloc(prompts_at_a_time=0)
    dropped = OpenClipImageEncoder(width=WIDTH, layers=1, image_size=32, patch_size=8, head_width=16, patch_dropout=0.5)
    with pytest.raises(ValueError, match="without dropped patches"):
        roi_cloc(image_encoder=dropped).train().loss_terms(batch)


def test_towers_of_timm_have_their_class_token_in(batch):
    """`vit`'s tokens after its last norm, whole."""
    tower = TimmImageEncoder("test_vit", 32, model_args={"patch_size": 8})
    method = cloc(image_encoder=tower).eval()
    inputs = method.processors["image"].finish(batch["image"])
    torch.testing.assert_close(method.encode("image", batch["image"]).tokens, tower.model.forward_features(inputs))


def test_training_finds_regions_and_boxes(regions):
    method = cloc()
    method.optimization = Optimization(lr=3e-3, warmup=0, schedule="constant")
    before = method.eval().loss_terms(regions)
    fit(method, regions, 40)
    after = method.loss_terms(regions)
    assert after["region_text"] < 0.3 * before["region_text"]
    assert after["grounding"] < 0.3 * before["grounding"]
    assert after["clip"] < 0.5 * before["clip"]


def test_a_half_precision_model_stays_finite(regions):
    method = cloc().bfloat16()
    half = {**regions, "image": method.processors["image"].finish(regions["image"]).bfloat16()}
    terms = method.loss_terms(half)
    assert all(term.dtype == torch.float32 and term.isfinite() for term in terms.values())


# Checkpoints ------------------------------------------------------------------------------------------------------


def test_it_comes_back_from_its_folder(regions, tmp_path):
    method = cloc(own_region_scale=True, prompter=AttentionPrompter(WIDTH, DIM, pool="image")).eval()
    assert build(method.config()).config() == method.config()
    save(method, tmp_path / "model")
    again = collimate.load(tmp_path / "model")
    image = again.encode("image", regions["image"])
    found = again.prompt(image, torch.tensor([WHOLE]))
    torch.testing.assert_close(found, method.prompt(image, torch.tensor([WHOLE])))


def test_a_clip_begins_as_cloc(batch):
    plain = cloc(CLIP).eval()
    config, weights = to_open_clip(plain)
    method = CLOC.from_open_clip(config, weights, tokenizer=ClipTokenizer(16), image_processor=ImageProcessor(32))
    for name in ("image", "text"):
        torch.testing.assert_close(method.encode(name, batch[name]).pooled, plain.encode(name, batch[name]).pooled)


def test_the_export_drops_in_for_a_clip_and_keeps_the_prompter_beside_it(regions, tmp_path):
    import open_clip

    method = cloc().eval()
    assert max(export(method, tmp_path / "out", "open_clip").values()) < 1e-5
    theirs = open_clip.create_model(f"local-dir:{tmp_path / 'out'}").eval()
    inputs = method.processors["image"].finish(regions["image"])
    torch.testing.assert_close(theirs.encode_image(inputs), method.encode("image", regions["image"]).pooled)
    config = json.loads((tmp_path / "out" / "open_clip_config.json").read_text())
    files = [tmp_path / "out" / name for name in ("open_clip_model.safetensors", "collimate_rest.safetensors")]
    again = CLOC.from_open_clip(config, *files, tokenizer=ClipTokenizer(16))
    image = again.encode("image", regions["image"])
    torch.testing.assert_close(again.ground(image, ["a dog"]), method.ground(image, ["a dog"]))
    with pytest.raises(CheckpointError, match="no weights of CLOC's prompter"):
        CLOC.from_open_clip(config, files[0], files[0], tokenizer=ClipTokenizer(16))


def squares(size, draw):
    """Pictures of three coloured squares in three of four corners; boxes, their colours, and captions that name all."""
    colours = {
        "red": (255, 0, 0),
        "green": (0, 255, 0),
        "blue": (0, 0, 255),
        "yellow": (255, 255, 0),
        "white": (255,) * 3,
    }
    names, tokenizer = list(colours), ClipTokenizer(16)
    images = torch.full((size, 3, 32, 32), 110, dtype=torch.uint8)
    labels = torch.stack([torch.randperm(5, generator=draw)[:3] for _ in range(size)])
    corners = torch.stack([torch.randperm(4, generator=draw)[:3] for _ in range(size)])
    first = 16 * torch.stack([corners % 2, corners // 2], 2) + torch.randint(0, 5, (size, 3, 2), generator=draw)
    boxes = torch.cat([first, first + torch.randint(7, 12, (size, 3, 1), generator=draw)], 2)
    for image, own, which in zip(images, boxes.tolist(), labels.tolist(), strict=True):
        for (x0, y0, x1, y1), label in zip(own, which, strict=True):
            image[:, y0:y1, x0:x1] = torch.tensor(colours[names[label]])[:, None, None]
    captions = tokenizer.batch(" and ".join(names[label] for label in own) for own in labels.tolist())
    there = torch.ones(size, 3, dtype=torch.bool)
    regions = {"regions": boxes / 32, "region_text": tokenizer.batch(names)[labels], "region_given": there}
    return {"image": images, "text": captions, **regions}, labels, names


@pytest.mark.slow
def test_prompts_tell_the_objects_of_a_picture_apart():
    """Who knows a picture but not its boxes is right in a third of the cases."""
    prompter = AttentionPrompter(64, 32, token_places=True)
    image = OpenClipImageEncoder(width=64, layers=2, image_size=32, patch_size=8, head_width=32)
    text = OpenClipTextEncoder(width=32, heads=2, layers=1, context_length=16, mlp_ratio=0.25)
    method = cloc(image_encoder=image, text_encoder=text, embed_dim=32, prompter=prompter, similar=0.99).train()
    optimizer, draw = torch.optim.AdamW(method.parameters(), lr=3e-3), torch.Generator().manual_seed(0)
    for _ in range(250):
        loss = method.total_loss(method.loss_terms(squares(64, draw)[0]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    batch, labels, names = squares(128, draw)
    with torch.no_grad():
        vectors = method.eval().prompt(method.encode("image", batch["image"]), batch["regions"])
        texts = method.encode("text", names).pooled
    chosen = torch.cosine_similarity(vectors[:, :, None], texts, dim=-1).argmax(-1)
    assert (chosen == labels).float().mean() > 0.7


# Real pictures ----------------------------------------------------------------------------------------------------


def test_boxes_of_coco(shared_data, tmp_path):
    """From the table to regions that find their words: a few steps on a few photographs, seen again."""
    table = shared_data / "images_coco_captions" / "manifest.jsonl"
    if not table.is_file():
        pytest.skip(f"no COCO excerpt at {table}")
    source = open_source(f"{table}?split=test")
    method = cloc(similar=0.999)  # texts of so small and new a tower are all alike
    method.optimization = Optimization(lr=3e-3, warmup=0, schedule="constant")
    data = DataModule(Boxed(source, 16), batch_size=16, regions=RegionChoice(6))
    options = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(max_steps=60, enable_model_summary=False, use_distributed_sampler=False, **options)
    trainer.fit(method, data)
    assert method.statistics["regions/share of pictures"] == 1
    assert 0 < method.statistics["regions/negatives kept"] < 1  # the same class in several pictures
    trained, new = (
        evaluate_regions(each, Boxed(source, 16), recalls=[10], device="cpu", resamples=10) for each in (method, cloc())
    )
    assert trained.protocol["regions"] == new.protocol["regions"]
    for name in ("region_to_text_recall@10", "text_to_region_recall@10", "region_accuracy"):
        assert trained.metrics[name] > new.metrics[name]
    assert {"grounding_iou", "image_retrieval_recall@10"} <= trained.metrics.keys()
    report = Report("Regions of COCO")
    trained.add_to(report)
    assert report.save(tmp_path).read_text().count("<img") >= 6


class Boxed(Source):
    """The first samples of a source that have several boxes."""

    def __init__(self, source, size):
        self.source, self.name = source, source.name
        self.places = [place for place in range(len(source)) if len(source.read(place)["regions.json"]) > 2][:size]

    def __len__(self):
        return len(self.places)

    def read(self, index):
        return self.source.read(self.places[index])
