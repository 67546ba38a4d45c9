"""Masked label prediction and distillation as methods: batches, ranks, chunks, resuming, folders, bad input."""

import copy
import json

import pytest
import torch
import yaml
from lightning.pytorch import Callback
from torch.nn.functional import cosine_similarity, cross_entropy

import collimate
from collimate.checkpoints import save
from collimate.losses.masked_tokens import UNSCORED
from collimate.testing import assert_cached_equals_full, assert_same_on_ranks, run_on_ranks
from collimate.training.run import cli_for, fit
from collimate_audio import (
    BEATs,
    BeatsHead,
    BeatsTokenizer,
    Estimator,
    FilterBank,
    LabelPredictor,
    RandomTokenizer,
    trained_encoder,
    trained_head,
    trained_tokenizer,
)
from collimate_audio.masked_patches import hide_patches
from collimate_audio.pretraining import LABELLED_BY, LABELS, label_key
from collimate_audio.quantizer import EMAQuantizer

from .beats_toys import (
    CODES,
    ESTIMATOR,
    FRONT_END,
    PREDICTOR,
    RANDOM,
    clips,
    distillation,
    distillation_section,
    pretraining,
    pretraining_section,
    recipe,
)

PATCHES = 9  # of half a second: 3 in time, 3 in bands


def bank_of(method, batch):
    processor = method.processors["audio"]
    return processor.finish(batch["audio"]), processor.mask(batch["audio"])


# Masked label prediction ----------------------------------------------------------------------------------------


def test_the_loss_is_the_mean_over_hidden_patches():
    method, batch = pretraining(), clips()
    batch["noise"] = torch.rand(6, 1, PATCHES)
    bank, frames = bank_of(method, batch)
    encoder, labels = method.encoders["audio"], method.tokenizer.labels(bank, frames)
    real = encoder.token_mask(bank, frames)
    visible = hide_patches(batch["noise"][:, 0], real)
    logits = method.predictor(encoder.visible(bank, visible.indices, visible.mask), visible, real)
    hidden = real & visible.hidden
    expected = cross_entropy(logits[hidden], labels[hidden])
    torch.testing.assert_close(method.loss_terms(batch)["label"], expected)
    right = (logits[hidden].argmax(1) == labels[hidden]).float().mean()
    assert float(method.statistics["masked/accuracy"]) == pytest.approx(float(right))
    counts = labels[hidden].bincount(minlength=CODES)
    assert float(method.statistics["masked/majority"]) == pytest.approx(float(counts.max() / counts.sum()))
    assert 1 <= float(method.statistics["labels/perplexity"]) <= CODES


def test_several_masks_are_the_mean_of_each():
    batch = clips()
    noise = torch.rand(6, 3, PATCHES)
    losses = [pretraining().loss_terms({**batch, "noise": noise[:, [place]]})["label"] for place in range(3)]
    together = pretraining(masks=3).loss_terms({**batch, "noise": noise})["label"]
    torch.testing.assert_close(together, torch.stack(losses).mean())


def test_masks_go_by_the_place_in_the_stream():
    method, batch = pretraining(masks=2), clips()
    hidden = method.embed(batch)["hidden"]
    turned = {name: value.flip(0) for name, value in batch.items()}
    assert torch.equal(method.embed(turned)["hidden"].flip(0), hidden)
    assert not torch.equal(hidden[:, 0], hidden[:, 1])
    further = {**batch, "position": batch["position"] + 100}
    assert not torch.equal(method.embed(further)["hidden"], hidden)
    assert not torch.equal(pretraining(masks=2, seed=1).embed(batch)["hidden"], hidden)
    in_validation = {"audio": batch["audio"], "index": batch["position"]}
    assert torch.equal(method.embed(in_validation)["hidden"], hidden)


def label_loss(audio, position):
    return pretraining(masks=2).loss_terms({"audio": audio, "position": position})["label"]


def test_masked_prediction_on_ranks():
    assert_same_on_ranks(label_loss, clips(), ranks=(1, 2), tolerance=1e-4)


def test_masked_prediction_in_chunks():
    method, batch = pretraining(), clips()

    def cached():
        method.gradient_cache = 2
        return method.total_loss(method.loss_terms(batch))

    assert_cached_equals_full(
        lambda: method.total_loss(method.loss_terms(batch)), cached, dict(method.named_parameters()), 1e-5
    )


def test_every_parameter_learns_and_no_other():
    for method in (pretraining(), distillation()):
        method.total_loss(method.loss_terms(clips())).backward()
        frozen = {name for name, parameter in method.named_parameters() if parameter.grad is None}
        assert all(name.startswith(("tokenizer.", "teacher.")) for name in frozen), frozen
        assert method.optimization.optimizer(method)


def test_labels_of_the_batch():
    """Labels from disk give the loss of those that the tokenizer makes."""
    own, batch = pretraining(), clips()
    labels = own.tokenizer.labels(*bank_of(own, batch))
    made = label_key(own.processors["audio"], 16, CODES)
    given = {**batch, LABELS: labels.short(), LABELLED_BY: [made] * 6}
    method = pretraining(tokenizer=None)
    assert method.also == (LABELS, LABELLED_BY)
    torch.testing.assert_close(method.loss_terms(given)["label"], own.loss_terms(batch)["label"])
    assert (labels == UNSCORED).any()


@pytest.mark.parametrize(
    ("change", "said"), [({"mean": 1.0}, "mean is 1.0 there"), ({"seconds": 1.0}, "seconds is 1.0 there")]
)
def test_labels_of_another_front_end_are_refused(change, said):
    made = label_key(FilterBank(**{**FRONT_END, **change}), 16, CODES)
    batch = {**clips(), LABELS: torch.zeros(6, PATCHES, dtype=torch.int16), LABELLED_BY: [made] * 6}
    with pytest.raises(ValueError, match=said):
        pretraining(tokenizer=None).loss_terms(batch)


def test_labels_of_another_tokenizer_are_refused():
    made = label_key(FilterBank(**FRONT_END), 16, 2 * CODES)
    batch = {**clips(), LABELS: torch.zeros(6, PATCHES, dtype=torch.int16), LABELLED_BY: [made] * 6}
    with pytest.raises(ValueError, match="codes is 32 there and 16 here"):
        pretraining(tokenizer=None).loss_terms(batch)


# Distillation ---------------------------------------------------------------------------------------------------


def started(method):
    """With codes, so that none are drawn."""
    quantizer: EMAQuantizer = method.encoders["audio"].quantize
    quantizer.codebook.copy_(torch.nn.functional.normalize(torch.randn_like(quantizer.codebook), dim=1))
    quantizer.started.fill_(True)
    return method


@pytest.mark.parametrize("with_head", [False, True], ids=["features", "logits"])
def test_distillation_is_its_two_terms(with_head):
    head = BeatsHead(24, 5) if with_head else None
    estimator = Estimator(**ESTIMATOR, target_width=5) if with_head else None
    method, batch = started(distillation(head=head, estimator=estimator)), clips()
    bank, frames = bank_of(method, batch)
    tokens = method.teacher(bank, frames).tokens
    target = tokens if head is None else head.predictor(tokens)
    tokenizer = copy.deepcopy(method.encoders["audio"])
    quantized, real = tokenizer.quantized(bank, frames)
    estimated = method.estimator(quantized.vectors, real)
    expected = (1 - cosine_similarity(estimated, target, dim=-1))[real].mean()
    terms = method.loss_terms(batch)
    torch.testing.assert_close(terms["distillation"], expected)
    torch.testing.assert_close(terms["quantizer"], quantized.loss)
    assert torch.equal(method.encoders["audio"].quantize.codebook, tokenizer.quantize.codebook)
    counts = quantized.codes[real].bincount(minlength=CODES)
    assert float(method.statistics["codes/used"]) == pytest.approx(float((counts > 0).float().mean()))


def distil_on_rank(batch):
    method = started(distillation())
    for name, value in batch.items():
        batch[name] = value.clone()
    loss = method.total_loss(method.loss_terms(batch))
    loss.backward()
    gradients = {name: p.grad for name, p in method.named_parameters() if p.grad is not None}
    return loss.detach(), gradients, method.encoders["audio"].quantize.codebook


@pytest.mark.parametrize("split", [(3, 3), (1, 5)], ids=str)
def test_distillation_on_ranks(split):
    loss, gradients, codebook = distil_on_rank(clips())
    parts = zip(*(value.split(split) for value in clips().values()), strict=True)
    found = run_on_ranks(distil_on_rank, [(dict(zip(clips(), part, strict=True)),) for part in parts])
    torch.testing.assert_close(torch.stack([own for own, *_ in found]).mean(0), loss)
    for name, gradient in gradients.items():
        mean = torch.stack([own[name] for _, own, _ in found]).mean(0)
        torch.testing.assert_close(mean, gradient, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: name + text)
    for *_, own in found:
        torch.testing.assert_close(own, codebook, rtol=0, atol=1e-6)


def test_distillation_in_chunks():
    """Codes move once, by the whole batch, also where the gradient cache cuts it."""
    full, cached = (started(distillation()) for _ in range(2))
    cached.load_state_dict(full.state_dict())
    cached.gradient_cache = 2
    gradients = []
    for method in (full, cached):
        method.total_loss(method.loss_terms(clips())).backward()
        gradients.append({name: p.grad for name, p in method.named_parameters() if p.grad is not None})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-7)
    one, other = (method.encoders["audio"].quantize for method in (full, cached))
    torch.testing.assert_close(one.codebook, other.codebook)
    assert int(one.updates) == int(other.updates) == 1


def test_the_teacher_stays_in_evaluation():
    method = distillation()
    method.teacher.dropout_input.p = 0.5
    method.train()
    assert not any(module.training for module in method.teacher.modules())
    assert method.encoders["audio"].training
    first, second = (method.embed(clips())["target"] for _ in range(2))
    assert torch.equal(first, second)
    assert not any(module.training for module in pretraining().train().tokenizer.modules())


# Training -------------------------------------------------------------------------------------------------------


class StopsAfter(Callback):
    """As a crash would, after the checkpoint of a step."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            raise RuntimeError("stopped")


def trained(model, folder, stop=None, resume=True, **sections):
    """The weights and buffers after a whole run, which may stop once in between."""
    path = folder.parent / f"{folder.name}.yaml"
    path.write_text(yaml.safe_dump(recipe(model, **sections)))
    for life in (stop, None) if stop else (None,):
        cli = cli_for([f"--config={path}", f"--output={folder}"], "train")
        if life is not None:
            cli.trainer.callbacks.append(StopsAfter(life))
            with pytest.raises(RuntimeError, match="stopped"):
                fit(cli.trainer, cli.model, cli.datamodule)
        else:
            fit(cli.trainer, cli.model, cli.datamodule)
    return cli.model.state_dict()


@pytest.mark.parametrize("make", [pretraining_section, distillation_section], ids=["prediction", "distillation"])
def test_resuming_is_exact(make, tmp_path):
    """With dropout and, for the tokenizer, codes that are restarted at draws; with accumulated gradients."""
    options = {"trainer": {"accumulate_grad_batches": 2}, "data": {"num_workers": 0}}
    model = make(dropout=0.2, layer_drop=0.2)
    whole = trained(model, tmp_path / "whole", **options)
    broken = trained(model, tmp_path / "broken", stop=2, **options)
    for name, value in whole.items():
        assert torch.equal(value, broken[name]), name
    if make is distillation_section:
        assert int(whole["encoders.audio.quantize.updates"]) == 8, "once with each batch"


def test_training_learns_and_leaves_folders(tmp_path):
    weights = trained(
        pretraining_section(),
        tmp_path / "run",
        trainer={"max_steps": 2},
        data={"val": "world-sound:val?length=8&seconds=0.6"},
    )
    model = collimate.load(tmp_path / "run" / "model")
    for name, value in weights.items():
        assert torch.equal(model.state_dict()[name], value)
    encoder = BEATs.from_pretrained(tmp_path / "run" / "model")
    encoder.save_pretrained(tmp_path / "encoder")
    again = trained_encoder(str(tmp_path / "encoder"))
    batch = clips()["audio"]
    assert torch.equal(again.encode(batch).pooled, model.encode("audio", batch).pooled)
    assert again.processor.config() == model.processors["audio"].config()


# Folders --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [pretraining, lambda: started(distillation())], ids=["random", "learned"])
def test_tokenizers_come_back_from_folders(make, tmp_path):
    method = make()
    save(method, tmp_path / "method")
    tokenizer = trained_tokenizer(str(tmp_path / "method"))
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    again = trained_tokenizer(str(tmp_path / "tokenizer"))
    bank, frames = bank_of(method, clips())
    expected = (method.tokenizer if make is pretraining else method.encoders["audio"].eval()).labels(bank, frames)
    assert torch.equal(again.labels(bank, frames), expected)
    assert again.processor.config() == method.processors["audio"].config()
    encoding = again.encode(clips()["audio"])
    assert encoding.pooled.shape == (6, again.width)
    assert encoding.grid == (3, 3)


def test_what_is_not_there_is_not_found(tmp_path):
    save(pretraining(), tmp_path / "method")
    with pytest.raises(TypeError, match="no head"):
        trained_head(str(tmp_path / "method"))
    BEATs(**distillation().teacher.config()["init_args"]).save_pretrained(tmp_path / "encoder")
    with pytest.raises(TypeError, match="not a AcousticTokenizer"):
        trained_tokenizer(str(tmp_path / "encoder"))
    with pytest.raises(TypeError, match="its `encoders`: audio"):
        BeatsTokenizer.from_pretrained(tmp_path / "method")


# Bad input ------------------------------------------------------------------------------------------------------


def test_parts_that_do_not_fit():
    encoder, processor = distillation().teacher, FilterBank(**FRONT_END)
    with pytest.raises(ValueError, match=r"predictor\.labels"):
        pretraining(tokenizer=RandomTokenizer(**{**RANDOM, "codes": 5}))
    with pytest.raises(ValueError, match="patches of 8 by 8"):
        pretraining(tokenizer=RandomTokenizer(**RANDOM, patch_size=8))
    with pytest.raises(ValueError, match="encoder_width"):
        type(pretraining())(encoder, LabelPredictor(**{**PREDICTOR, "encoder_width": 7}), processor)
    with pytest.raises(ValueError, match="masks"):
        pretraining(masks=0)
    with pytest.raises(ValueError, match=r"estimator\.target_width"):
        distillation(head=BeatsHead(24, 5))
    with pytest.raises(ValueError, match=r"estimator\.code_width"):
        distillation(tokenizer={"width": 5})


def test_another_front_end_than_in_training_is_refused():
    tokenizer = RandomTokenizer(**RANDOM)
    tokenizer.processor = FilterBank(**{**FRONT_END, "mean": 3.0})
    with pytest.raises(ValueError, match=r"another front end: mean is 3\.0 there"):
        pretraining(tokenizer=tokenizer)
    tokenizer.processor = FilterBank(**{**FRONT_END, "seconds": 3.0})
    assert pretraining(tokenizer=tokenizer).tokenizer is tokenizer


def test_label_keys_are_plain():
    found = json.loads(label_key(FilterBank(**FRONT_END), 16, CODES))
    assert found["seconds"] == 0.5
    assert found["codes"] == CODES
