"""TCL as a method: its step, its memory of past steps, ids of pictures, released weights, and what it refuses."""

import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

import collimate
from collimate.checkpoints import CheckpointError, save
from collimate.configurable import build
from collimate.data import DataModule, StrongImageAugmentation, open_source
from collimate.encoders import Bert, TimmImageEncoder
from collimate.evaluation.retrieval import evaluate_retrieval
from collimate.losses.masked_tokens import UNSCORED
from collimate.losses.queue import NO_ID
from collimate.processing import HuggingFaceTokenizer, ImageProcessor
from collimate.testing import assert_cached_equals_full
from collimate.training import Optimization
from collimate_vision_language import TCL
from collimate_vision_language.tcl.alignment import pooled_grid

from .test_methods import fit

CAPTIONS = ["a dog", "two cats", "a red ball", "rain", "the sea at night", ""]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(set(" ".join(CAPTIONS).split()))]
MASK = VOCABULARY.index("[MASK]")
DRAWN = {"negative_image", "negative_text", "masked_text", "masked_labels"}


@pytest.fixture(scope="module", autouse=True)
def words(tmp_path_factory):
    """A tokenizer's folder with the few words of the captions."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("words")
    transformers.BertTokenizer(vocab={word: place for place, word in enumerate(VOCABULARY)}).save_pretrained(folder)
    tokenizer.path = str(folder)


def tokenizer():
    return HuggingFaceTokenizer(tokenizer.path, 8)


def image_tower(size=32):
    sizes = {"patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}
    return TimmImageEncoder("vit_base_patch16_224", image_size=size, model_args=sizes)


def bert(**given):
    sizes = {"vocab_size": len(VOCABULARY), "context_length": 8, "width": 32, "layers": 2, "heads": 2, "hidden": 32}
    return Bert(**{**sizes, "fusion_layer": 1, "cross_width": 32, "token_head": True, "dropout": 0.0, **given})


def tcl(size=32, **given):
    torch.manual_seed(0)
    parts = {
        "image_encoder": image_tower(size),
        "text_encoder": bert(token_head=given.get("mask_rate", 1) != 0),
        "image_processor": ImageProcessor(size),
        "tokenizer": tokenizer(),
    }
    return TCL(**{**parts, "embed_dim": 16, "queue_size": 20, **given})


def tuning(**given):
    return tcl(**{"mask_rate": 0.0, "image_ids": True, "temperature_bounds": None, **given})


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    colours = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [0, 0, 0], [255, 255, 255]])
    noise = torch.randint(-60, 60, (6, 3, 32, 32), generator=generator)
    images = (colours[:, :, None, None] + noise).clamp(0, 255).byte()
    return {"image": images, "text": tokenizer().batch(CAPTIONS), "position": torch.arange(6)}


@pytest.fixture
def drawn(batch):
    """A batch with everything that is else drawn."""
    masked, labels = batch["text"].clone(), torch.full_like(batch["text"], UNSCORED)
    masked[:, 1], labels[:, 1] = MASK, batch["text"][:, 1]
    view = batch["image"].flip(3)
    wrong = {"negative_image": torch.tensor([1, 2, 3, 4, 5, 0]), "negative_text": torch.tensor([5, 0, 1, 2, 3, 4])}
    return {**batch, "image_view": view, "masked_text": masked, "masked_labels": labels, **wrong}


@pytest.fixture
def with_ids(batch):
    return {**batch, "id": torch.tensor([7, 3, 7, 11, 3, 7])}


def without(batch, *names):
    return {name: value for name, value in batch.items() if name not in names}


# The step -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 4])
def test_the_gradient_cache_changes_nothing(drawn, chunk):
    method = tcl()
    start = {name: value.clone() for name, value in method.state_dict().items()}

    def run(chunk):
        method.load_state_dict(start)
        method.gradient_cache = chunk
        return method.total_loss(method.loss_terms(drawn))

    learning = {name: p for name, p in method.named_parameters() if p.requires_grad}
    assert_cached_equals_full(lambda: run(None), lambda: run(chunk), learning, tolerance=1e-4)
    assert method.queue.added == 6


def test_every_parameter_of_the_towers_learns_and_no_copy_does(drawn):
    """DDP does not forgive a parameter that a step leaves out."""
    for method in (tcl(), tuning()):
        batch = {**drawn, "id": torch.arange(6)}
        method.total_loss(method.loss_terms(batch)).backward()
        without_gradient = {name for name, p in method.named_parameters() if p.grad is None}
        assert without_gradient == {name for name, p in method.named_parameters() if name.startswith("momentum_")}
        held = {id(p) for group in Optimization().optimizer(method).param_groups for p in group["params"]}
        assert held == {id(p) for p in method.parameters() if p.grad is not None}


def test_without_draws_in_the_batch_they_are_made(drawn):
    method, bare = tcl(), without(drawn, *DRAWN)
    terms = method.loss_terms(bare)
    assert set(terms) == {"cma", "imc", "lmi", "itm", "mlm"}
    assert all(torch.isfinite(term) and term.requires_grad for term in terms.values())


def test_masked_texts_keep_their_first_token_and_their_padding(batch):
    method = tcl(mask_rate=0.9)
    real = method.processors["text"].mask(batch["text"])
    for _ in range(5):
        masked, labels = method._masked_text(batch, real)
        assert (labels[:, 0] == UNSCORED).all()
        assert (labels[~real] == UNSCORED).all()
        assert torch.equal(masked[labels == UNSCORED], batch["text"][labels == UNSCORED])
        assert (labels != UNSCORED).any()


def test_a_batch_in_which_no_token_was_masked(drawn):
    method = tcl()
    batch = {**drawn, "masked_labels": torch.full_like(drawn["text"], UNSCORED)}
    terms = method.loss_terms(batch)
    assert terms["mlm"] == 0
    method.total_loss(terms).backward()
    assert all(torch.isfinite(p.grad).all() for p in method.parameters() if p.grad is not None)


def test_the_paper_adds_what_the_released_code_averages(drawn):
    ours, papers = tcl().loss_terms(drawn), tcl(contrast_weight=1.0).loss_terms(drawn)
    for name in ("cma", "imc", "lmi"):
        torch.testing.assert_close(papers[name], 3 * ours[name])
    for name in ("itm", "mlm"):
        assert papers[name] == ours[name]


def test_the_other_view_goes_through_the_copies_alone(drawn):
    method = tcl()
    one, other = method.embed(drawn), method.embed(without(drawn, "image_view"))
    for name in ("image", "text", "image_tokens", "text_tokens", "text_key"):
        assert torch.equal(one[name], other[name])
    assert not torch.equal(one["image_key"], other["image_key"])
    torch.testing.assert_close(other["image_key"], other["image"])  # copies begin as copies


def test_patches_are_pooled_in_whole_windows():
    patches = torch.arange(30.0).view(1, 30, 1)
    found = pooled_grid(patches, (5, 6), 2)
    grid = patches.view(5, 6)
    wanted = [grid[r : r + 2, c : c + 3].mean() for r in (0, 2) for c in (0, 3)]
    torch.testing.assert_close(found.flatten(), torch.stack(wanted))
    assert torch.equal(pooled_grid(patches, (5, 6), 4).flatten(), grid[:4, :4].flatten())
    for grid in (None, (5, 3)):
        with pytest.raises(ValueError, match="smaller local_grid"):
            pooled_grid(patches, grid, 4)


def test_fusion_runs_in_the_precision_of_the_run(drawn):
    method, seen = tcl(), []
    method.itm_head.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    method.optimization = Optimization(lr=1e-3, warmup=0, schedule="constant")
    trainer = Trainer(
        max_steps=1, accelerator="cpu", precision="bf16-mixed", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(method, DataLoader([drawn], batch_size=None))
    assert set(seen) == {torch.bfloat16}
    assert all(torch.isfinite(p).all() for p in method.parameters())


def test_training_finds_the_pairs_and_the_hidden_words(drawn):
    method = tcl(image_ids=True, momentum=0.9)  # with ids: the queue soon holds this one batch over and over
    method.optimization = Optimization(lr=1e-2, warmup=0, schedule="constant")
    batch = {**drawn, "id": torch.arange(6)}
    before = method.eval().loss_terms(batch)
    fit(method, batch, 40)
    after = method.loss_terms(batch)
    assert all(after[name] < 0.5 * before[name] for name in ("itm", "mlm"))
    cosines = method.similarity(*(method.encode(name, batch[name]) for name in ("image", "text")))
    assert (cosines.argmax(1) == torch.arange(6)).all()
    assert method.statistics["accuracy/matching"] == 1
    assert method.statistics["accuracy/masked"] == 1


# What stays from step to step -----------------------------------------------------------------------------------


def test_queue_and_copies_move_in_training_only(drawn):
    method = tcl()
    before = {name: value.clone() for name, value in method.state_dict().items()}
    method.eval().loss_terms(drawn)
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())
    embeddings = method.train().embed(drawn)
    method.losses(embeddings, drawn)
    assert method.queue.added == 6
    torch.testing.assert_close(method.queue["text"][:6], torch.nn.functional.normalize(embeddings["text_key"], dim=1))
    assert torch.equal(method.queue["text"][6:], before["queue.text_features"][6:])
    assert method.statistics["queue_fill"] == pytest.approx(6 / 20)
    with torch.no_grad():
        method.projections["text"].linear.bias += 1
        method.temp.fill_(0.9)
    method.after_optimizer_step()
    torch.testing.assert_close(method.momentum_projections["text"].linear.bias, torch.full((16,), 0.005))
    assert method.temp == 0.5


def test_the_temperature_stays_free_in_fine_tuning():
    method = tuning(temperature=0.9)
    method.after_optimizer_step()
    assert float(method.temp) == pytest.approx(0.9)
    assert float(method.logit_scale.exp()) == pytest.approx(1 / 0.9)


def train(method, batch, steps, folder, checkpoint=None):
    method.optimization = Optimization(lr=1e-3, warmup=0, schedule="constant")
    trainer = Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, accumulate_grad_batches=2,
    )  # fmt: skip
    trainer.fit(method, DataLoader([batch] * 8, batch_size=None), ckpt_path=checkpoint, weights_only=True)
    trainer.save_checkpoint(folder / f"{steps}.ckpt")


def test_a_resumed_run_is_bit_equal(drawn, tmp_path):
    whole, first, resumed = tcl(), tcl(), tcl()
    train(whole, drawn, 4, tmp_path)
    train(first, drawn, 2, tmp_path)
    train(resumed, drawn, 4, tmp_path, tmp_path / "2.ckpt")
    assert whole.queue.added == resumed.queue.added == 4 * 2 * 6
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert not torch.equal(whole.state_dict()["queue.text_features"], first.state_dict()["queue.text_features"])


def test_alpha_grows_over_its_warm_up(drawn):
    method = tcl(alpha_warmup=4)
    assert method.softness == 0
    seen = []
    losses = method.losses
    method.losses = lambda *given: seen.append(method.softness) or losses(*given)
    method.optimization = Optimization(lr=1e-4, warmup=0, schedule="constant")
    fit(method, drawn, 6)
    assert seen == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.4])


def test_a_folder_holds_all_of_it(drawn, tmp_path):
    method = tcl(momentum=0.9, local_grid=2)
    method.loss_terms(drawn)
    method.after_optimizer_step()
    save(method, tmp_path / "model")
    again = collimate.load(tmp_path / "model")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in method.state_dict().items())
    assert (again.momentum, again.local_grid) == (0.9, 2)
    assert torch.equal(again.train().loss_terms(drawn)["lmi"], method.loss_terms(drawn)["lmi"])


# Ids of pictures ------------------------------------------------------------------------------------------------


def test_samples_of_one_picture_are_positives_and_no_negatives(with_ids):
    method, plain = tuning(alpha=0.0), tuning(alpha=0.0, image_ids=False)
    assert method.also == ("id",)
    assert plain.also == ()
    method.loss_terms(with_ids)
    positives = method._positives(with_ids["id"], 6).blend(torch.eye(26), (26,))[0]
    assert positives.sum(1).tolist() == [6, 4, 6, 2, 4, 6]  # in the batch, and once more in the queue
    assert method.queue.ids[:7].tolist() == [7, 3, 7, 11, 3, 7, NO_ID]
    features = method.embed(with_ids)
    normal = torch.nn.functional.normalize
    pair = tuple(normal(features[name], dim=1) for name in ("image", "text"))
    drawn_rows = []
    method.in_chunks = lambda run, rows: drawn_rows.append(rows) or run(rows)
    for _ in range(10):
        _, _ = method.losses(features, with_ids), pair
    tokens = features["text_tokens"]
    for rows in drawn_rows:
        texts = [int((tokens == row).flatten(1).all(1).nonzero()[0]) for row in rows["text_tokens"][12:]]
        assert (with_ids["id"][texts] != with_ids["id"]).all()


def test_ids_are_asked_for(batch, with_ids):
    with pytest.raises(ValueError, match="needs the key `id`"):
        tuning().loss_terms(batch)
    with pytest.raises(ValueError, match="all 6 of the batch share the id 5"):
        tuning().loss_terms({**with_ids, "id": torch.full((6,), 5)})


def test_all_different_ids_are_no_ids(drawn):
    batch = {**drawn, "id": torch.arange(6) + 50}
    torch.testing.assert_close(tuning().loss_terms(batch), tuning(image_ids=False).loss_terms(batch))


# Matching -------------------------------------------------------------------------------------------------------


def test_reranking_gives_the_matching_head_s_logits(drawn):
    method = tcl().eval()
    image, text = method.encode("image", drawn["image"]), method.encode("text", drawn["text"])
    seen = []
    method.itm_head.register_forward_hook(lambda module, inputs, output: seen.append(output))
    scores = method.rerank(image, text)
    method.loss_terms(drawn)
    torch.testing.assert_close(scores, seen[1][:6, 1])
    assert image.pooled.shape == (6, 16)
    assert image.tokens.shape == (6, 17, 32)


def test_maps_are_of_the_patches(drawn):
    method = tcl().eval()
    image, text = method.encode("image", drawn["image"]), method.encode("text", drawn["text"][:4])
    assert (image.prefix, image.grid) == (1, (4, 4))
    found = method.localization_map(image, text)
    assert found.shape == (6, 4, 16)
    assert (found >= 0).all()
    assert found.std(2).max() > 0
    assert all(parameter.grad is None for parameter in method.parameters())


def test_real_pictures_with_five_captions_each(shared_data):
    """Fine-tuning with the identity of pictures, validation, and retrieval re-ranked by the matching head."""
    table = shared_data / "images_coco_captions" / "manifest.jsonl"
    if not table.exists():
        pytest.skip(f"no COCO excerpt at {table}")
    method = tuning()
    augmented = {"image": StrongImageAugmentation(scale=(0.5, 1.0))}
    data = DataModule(
        {f"{table}?split=train": 1.0}, f"{table}?split=test", batch_size=8, val_limit=9, augmentations=augmented
    )
    trainer = Trainer(
        max_steps=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, val_check_interval=3,
    )  # fmt: skip
    trainer.fit(method, data)
    assert torch.isfinite(trainer.callback_metrics["val/itm"])  # also of the last batch, a lone sample
    assert method.queue.added == 24
    assert method.queue.ids.unique().numel() > 10
    assert not torch.equal(method.queue["image"], tcl().queue["image"])
    found = evaluate_retrieval(method, open_source(f"{table}?split=test"), limit=12, resamples=2, rerank=4)
    assert {"image_retrieval_recall@5", "reranked_image_retrieval_recall@5"} <= found.metrics.keys()


def test_a_lone_sample_can_be_validated_but_not_trained_on(drawn):
    lone = {name: value[:1] for name, value in without(drawn, *DRAWN).items()}
    repeated = {name: value[[0, 0, 0]] for name, value in drawn.items() if name not in DRAWN}
    for method, batch in ((tcl(), lone), (tuning(), {**repeated, "id": torch.zeros(3, dtype=torch.int64)})):
        terms = method.eval().loss_terms(batch)
        assert all(torch.isfinite(term) for term in terms.values())
    with pytest.raises(ValueError, match="at least 2 a rank"):
        tcl().loss_terms(lone)


# Weights of the released code -----------------------------------------------------------------------------------


def to_released(method, fine_tuned=False):
    """A TCL under the released names: what `from_official` undoes."""
    names = {
        "momentum_encoders.image.model.": "visual_encoder_m.", "encoders.image.model.": "visual_encoder.",
        "momentum_encoders.text.": "text_encoder_m.", "encoders.text.": "text_encoder.",
        "momentum_projections.image.linear.": "vision_proj_m.", "projections.image.linear.": "vision_proj.",
        "momentum_projections.text.linear.": "text_proj_m.", "projections.text.linear.": "text_proj.",
    }  # fmt: skip
    weights = {}
    for name, value in method.state_dict().items():
        for ours, theirs in names.items():
            if name.startswith(ours):
                rest = name.removeprefix(ours)
                level = "bert." if "text_encoder" in theirs and not fine_tuned and not rest.startswith("cls.") else ""
                weights[theirs + level + rest] = value
                break
        else:
            weights[name] = value
    queue = {name.removeprefix("queue."): weights.pop(name) for name in list(weights) if name.startswith("queue.")}
    weights["image_queue"], weights["text_queue"] = queue["image_features"].T, queue["text_features"].T
    weights["queue_ptr"] = queue["added"][None] % method.queue.size
    weights["text_encoder.bert.embeddings.position_ids"] = torch.arange(8)[None]
    return weights | ({"idx_queue": queue["ids"][None]} if fine_tuned else {})


def read(weights, **given):
    return TCL.from_official(weights, tokenizer=tokenizer(), image_heads=2, text_heads=2, dropout=0.0, **given)


@pytest.mark.parametrize("fine_tuned", [False, True])
def test_released_weights_load_by_name(drawn, tmp_path, fine_tuned):
    method = tuning() if fine_tuned else tcl()
    batch = {**drawn, "id": torch.tensor([7, 3, 7, 11, 3, 7])}
    method.loss_terms(batch)
    torch.save({"model": to_released(method, fine_tuned), "epoch": 3}, tmp_path / "checkpoint.pth")
    loaded = read(tmp_path / "checkpoint.pth")
    method.after_optimizer_step()
    state = loaded.state_dict()
    assert state.keys() == method.state_dict().keys()
    assert all(torch.equal(value, state[name]) for name, value in method.state_dict().items() if name != "queue.added")
    assert loaded.queue.added % 20 == method.queue.added
    assert loaded.queue.fill == 1
    assert loaded.image_ids == fine_tuned
    assert (loaded.mask_rate == 0) == fine_tuned
    torch.testing.assert_close(loaded.train().loss_terms(batch), method.loss_terms(batch))


def test_pre_trained_weights_begin_a_fine_tuning_at_another_size(drawn, tmp_path):
    released = tcl()
    torch.save({"model": to_released(released)}, tmp_path / "checkpoint.pth")
    save(released, tmp_path / "model")
    for source in ("checkpoint.pth", "model"):
        method = tuning(size=48, pretrained=str(tmp_path / source), queue_size=12)
        assert method.state_dict()["encoders.image.model.pos_embed"].shape == (1, 37, 32)
        for name in ("encoders.text.encoder.layer.1.crossattention.self.key.weight", "itm_head.weight", "temp"):
            assert torch.equal(method.state_dict()[name], released.state_dict()[name])
        assert method.queue.added == 0
        assert "pretrained" not in method.config()["init_args"]
        assert build(method.config()).config() == method.config()
    loaded = read(to_released(released), image_size=48, mask_rate=0)
    assert loaded.processors["image"].size == 48
    torch.testing.assert_close(
        loaded.encoders["image"].model.pos_embed,
        tuning(size=48, pretrained=str(tmp_path / "model")).encoders["image"].model.pos_embed,
    )


def test_positions_are_interpolated_as_the_released_code_does():
    method = tcl()
    positions = method.encoders["image"].model.pos_embed.detach()
    maps = positions[:, 1:].mT.unflatten(2, (4, 4))
    wanted = torch.nn.functional.interpolate(maps, (6, 6), mode="bicubic", align_corners=False).flatten(2).mT
    found = read(to_released(method), image_size=48).encoders["image"].model.pos_embed
    torch.testing.assert_close(found, torch.cat([positions[:, :1], wanted], 1))


def test_weights_without_copies_begin_with_copies():
    weights = {name: value for name, value in to_released(tcl()).items() if "_m." not in name}
    loaded = read(weights)
    for name, value in loaded.encoders.state_dict().items():
        assert torch.equal(loaded.momentum_encoders.state_dict()[name], value)


def test_weights_that_do_not_fit_are_named():
    weights = to_released(tcl())
    with pytest.raises(CheckpointError, match="whatever"):
        read({**weights, "whatever": torch.ones(1)})
    with pytest.raises(CheckpointError, match=r"encoders\.image\.model\.extra"):
        read({**weights, "visual_encoder.extra": torch.ones(1)})
    with pytest.raises(CheckpointError, match=r"itm_head\.bias"):
        read(without(weights, "itm_head.bias"))
    with pytest.raises(CheckpointError, match=r"vision_proj|projections\.image"):
        read(without(weights, "vision_proj.weight"))
    with pytest.raises(CheckpointError, match="fuses nothing"):
        read({name: value for name, value in weights.items() if "crossattention" not in name})
    with pytest.raises(CheckpointError, match=r"temp"):
        read({**weights, "temp": torch.ones(2)})


# Bad input ------------------------------------------------------------------------------------------------------


def test_towers_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="cross_width=32"):
        tcl(text_encoder=bert(cross_width=None))
    with pytest.raises(ValueError, match="token_head=True"):
        tcl(text_encoder=bert(token_head=False))
    with pytest.raises(ValueError, match="nothing trains the token head"):
        tuning(text_encoder=bert())
    with pytest.raises(ValueError, match="share of the tokens"):
        tcl(mask_rate=1.5)
