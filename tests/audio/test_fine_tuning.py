"""Fine-tuning: losses against their formulas and over ranks, gradients everywhere, validation, checkpoints, resume."""

import json
import math

import numpy as np
import pytest
import soundfile
import torch
import yaml
from sklearn.metrics import average_precision_score, roc_auc_score

import collimate
from collimate.checkpoints import save
from collimate.checkpoints.files import CheckpointError
from collimate.encoders import Encoder, Frozen
from collimate.encoding import Encoding
from collimate.processing import ClassLabels
from collimate.testing import assert_same_on_ranks, run_on_ranks
from collimate.training import Optimization
from collimate.training.classifier import one_label_loss, several_labels_loss
from collimate.training.run import cli_for, fit
from collimate_audio import AudioClassifier, BEATs, BeatsHead, FilterBank, Mixup, SpectrogramMasks, trained_encoder

from .beats_toys import ENCODER, OFFICIAL

RATE = 16_000
NAMES = ["low", "middle", "high"]


def classifier(labels=None, encoder=None, **options):
    torch.manual_seed(0)
    labels = labels or ClassLabels(NAMES, exclusive=True)
    return AudioClassifier(encoder or BEATs(**ENCODER), labels, FilterBank(0.3, mel_bands=32), **options)


def tone(number, seconds=0.3, rate=RATE):
    """A noisy tone whose pitch is the class."""
    generator = np.random.default_rng(number)
    time = np.arange(round(seconds * rate)) / rate
    wave = 0.3 * np.sin(2 * np.pi * 200 * 4 ** (number % 3) * time + generator.uniform(0, 6))
    return (wave + 0.02 * generator.standard_normal(len(time))).astype(np.float32)


def batch_of(method, count=6):
    audio = method.processors["audio"].batch([tone(number, 0.2 + 0.02 * number) for number in range(count)])
    labels = torch.stack([method.labels(number % 3) for number in range(count)])
    return {"audio": audio, "labels": labels, "position": torch.arange(count)}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """36 clips of three pitches, of two lengths and two rates, in two parts."""
    folder = tmp_path_factory.mktemp("tones")
    with (folder / "manifest.csv").open("w") as file:
        file.write("file,label,split\n")
        for number in range(36):
            rate = (8_000, RATE)[number % 2]
            soundfile.write(folder / f"{number}.wav", tone(number, 0.2 + 0.1 * (number % 2), rate), rate)
            file.write(f"{number}.wav,{NAMES[number % 3]},{'val' if number < 9 else 'train'}\n")
    return folder / "manifest.csv"


def test_losses_are_their_formulas():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    targets = torch.eye(4, dtype=torch.float64)[[0, 1, 2, 3, 0]]
    smooth = 0.9 * targets + 0.1 / 4
    assert float(one_label_loss(logits, targets, 0.1)) == pytest.approx(
        float(-(smooth * logits.log_softmax(1)).sum(1).mean())
    )
    soft = torch.rand(5, 4, generator=generator, dtype=torch.float64)
    p = logits.sigmoid()
    expected = -(soft * p.log() + (1 - soft) * (1 - p).log()).mean()
    assert float(several_labels_loss(logits, soft)) == pytest.approx(float(expected))


@pytest.mark.parametrize("loss", [one_label_loss, several_labels_loss])
def test_losses_are_the_same_on_ranks(loss):
    generator = torch.Generator().manual_seed(0)
    rows = {"logits": torch.randn(9, 4, generator=generator), "targets": torch.eye(4)[torch.arange(9) % 4]}
    assert_same_on_ranks(lambda logits, targets: loss(logits, targets.detach()), rows, ranks=(1, 2))


def test_metrics_are_scikit_learns():
    generator = torch.Generator().manual_seed(0)
    scores, targets = torch.randn(60, 5, generator=generator), (torch.rand(60, 5, generator=generator) < 0.3).float()
    targets[:, 4] = 0  # a class without a positive is left out
    found = classifier(ClassLabels(list("abcde"))).metrics(scores, targets)
    assert found["mAP"] == pytest.approx(average_precision_score(targets[:, :4], scores[:, :4], average="macro"))
    area = roc_auc_score(targets[:, :4], scores[:, :4], average="macro")
    assert found["mAUC"] == pytest.approx(area)
    assert 0.5 * (1 + math.erf(found["d_prime"] / 2)) == pytest.approx(area)  # Phi(d' / sqrt 2)
    one = torch.eye(3)[[0, 0, 0, 1]]
    assert classifier().metrics(torch.tensor([[1.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0]]), one) == {
        "acc1": 0.75,
        "mean_per_class_recall": pytest.approx((2 / 3 + 1) / 2),
    }


@pytest.mark.parametrize("decay", [0.2, 0.6])
def test_every_parameter_learns_at_its_rate(decay):
    """The only other public fine-tuning of BEATs trains the last layer alone, for its gradients are cut."""
    method = classifier()
    optimizer = Optimization(lr=0.1, layer_decay=decay, weight_decay=0.0, eps=1e-12).optimizer(method)
    method.total_loss(method.loss_terms(batch_of(method))).backward()
    rates = {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    depths = method.encoders["audio"].depths()
    for name, parameter in method.named_parameters():
        assert parameter.grad is not None, name
        if not name.endswith("k_proj.bias"):  # softmax does not see it
            assert float(parameter.grad.abs().max()) > 0, name
        depth = depths.get(name.removeprefix("encoders.audio."), 0)
        assert rates[id(parameter)] == pytest.approx(0.1 * decay**depth), name
    assert {depths[name] for name in depths} == {1, 2, 3}


def test_logits_are_the_mean_of_the_tokens_and_blind_to_the_batch():
    method = classifier().eval()
    batch = batch_of(method)
    whole = method.embed(batch)["logits"]
    for row in range(6):
        alone = method.processors["audio"](tone(row, 0.2 + 0.02 * row))
        encoding = method.encode("audio", alone[None])
        tokens = encoding.tokens[0][encoding.token_mask[0]]
        expected = (tokens @ method.head.predictor.weight.T + method.head.predictor.bias).mean(0)
        torch.testing.assert_close(whole[row], expected, rtol=1e-4, atol=1e-5)
    pooled = Encoding(method.encode("audio", batch["audio"]).pooled)
    torch.testing.assert_close(method.logits(pooled), whole, rtol=1e-4, atol=1e-5)


def test_encoders_without_tokens_and_frozen_ones():
    class Flat(Encoder):
        width = 4

        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(32, 4)

        def forward(self, inputs, mask=None):
            return Encoding(self.layer(inputs.mean(1)))

    method = classifier(encoder=Flat())
    assert method.embed(batch_of(method))["logits"].shape == (6, 3)
    method = classifier(encoder=Frozen(BEATs(**ENCODER)))
    method.total_loss(method.loss_terms(batch_of(method))).backward()
    assert method.head.predictor.weight.grad is not None
    assert all(parameter.grad is None for parameter in method.encoders.parameters())


def test_masks_act_in_training_alone():
    method = classifier(masks=SpectrogramMasks(1, 1.0, 1, 1.0))
    plain = classifier()
    batch = batch_of(method)
    assert not torch.allclose(method.embed(batch)["logits"], plain.embed(batch)["logits"])
    torch.testing.assert_close(method.eval().embed(batch)["logits"], plain.eval().embed(batch)["logits"])
    batch["mask_noise"] = torch.zeros(6, 2, 2)  # masks of no width
    torch.testing.assert_close(method.train().embed(batch)["logits"], plain.train().embed(batch)["logits"])


def test_binary_loss_where_labels_are_several_or_clips_mixed():
    assert classifier().one_label
    assert not classifier(ClassLabels(NAMES)).one_label
    assert not classifier(mixup=Mixup()).one_label
    with pytest.raises(ValueError, match="label_smoothing"):
        classifier(ClassLabels(NAMES), label_smoothing=0.1)
    method = classifier(ClassLabels(NAMES))
    batch = batch_of(method)
    expected = several_labels_loss(method.embed(batch)["logits"], batch["labels"])
    torch.testing.assert_close(method.loss_terms(batch)["classification"], expected)


def test_probabilities_by_name_survive_a_folder(tmp_path):
    for exclusive in (True, False):
        method = classifier(ClassLabels(NAMES, exclusive=exclusive)).eval()
        sounds = [tone(number) for number in range(3)]
        found = method.classify(sounds, top=3)
        assert [set(each) for each in found] == [set(NAMES)] * 3
        for each in found:
            assert list(each.values()) == sorted(each.values(), reverse=True)
            assert (sum(each.values()) == pytest.approx(1)) == exclusive
        folder = tmp_path / str(exclusive)
        save(method, folder)
        loaded = collimate.load(folder)
        assert loaded.labels.names == NAMES
        for one, other in zip(found, loaded.classify(sounds, top=3), strict=True):
            assert one == pytest.approx(other, abs=1e-6)


def official(classes=2):
    """A fine-tuned checkpoint as the authors publish them, of a tiny model."""
    torch.manual_seed(0)
    encoder, head = BEATs(**ENCODER), BeatsHead(24, classes)
    config = {**OFFICIAL, "predictor_dropout": 0.1}
    weights = {**encoder.state_dict(), **head.state_dict()}
    return {"cfg": config, "model": weights, "label_dict": {0: "/m/0b", 1: "/m/0a"}}


def test_published_classifiers_answer_in_their_own_order(tmp_path):
    method = AudioClassifier.from_official(official(), ["Rain", "Speech"])
    assert method.labels.names == ["/m/0b", "/m/0a"]
    assert method.labels(["Speech"]).tolist() == [0, 1]
    assert set(method.classify([tone(0, 1.0)])[0]) == {"/m/0b", "/m/0a"}
    torch.save(official(), tmp_path / "published.pt")
    encoder = trained_encoder(str(tmp_path / "published.pt"))
    torch.testing.assert_close(encoder.state_dict(), method.encoders["audio"].state_dict())
    published = str(tmp_path / "published.pt")
    tuned = classifier(encoder=BEATs(**ENCODER, layer_drop=0.1), pretrained=published)
    torch.testing.assert_close(tuned.encoders["audio"].state_dict(), encoder.state_dict())
    assert "pretrained" not in tuned.config()["init_args"]
    with pytest.raises(CheckpointError, match="layers 2"):
        classifier(encoder=BEATs(**{**ENCODER, "layers": 3}), pretrained=published)


def test_pretrained_encoders_bring_their_front_end(tmp_path):
    first = BEATs(**ENCODER)
    first.save_pretrained(tmp_path / "encoder", FilterBank(0.3, mel_bands=32))
    tuned = classifier(encoder=BEATs(**ENCODER, dropout=0.2), pretrained=str(tmp_path / "encoder"))
    torch.testing.assert_close(tuned.encoders["audio"].state_dict(), first.state_dict())
    with pytest.raises(ValueError, match="another front end: mel_bands"):
        AudioClassifier(BEATs(**ENCODER), ClassLabels(NAMES), FilterBank(0.3), pretrained=str(tmp_path / "encoder"))
    save(tuned, tmp_path / "tuned")
    again = classifier(encoder=BEATs(**ENCODER), pretrained=str(tmp_path / "tuned"))  # of a method, its encoder
    torch.testing.assert_close(again.encoders["audio"].state_dict(), first.state_dict())


# Training -------------------------------------------------------------------------------------------------------


def recipe(table, output, steps, **sections):
    made = {
        "output": str(output),
        "model": {
            "class_path": "collimate_audio.AudioClassifier",
            "init_args": {
                "encoder": {"class_path": "collimate_audio.BEATs", "init_args": {**ENCODER, "dropout": 0.1}},
                "labels": {
                    "class_path": "collimate.processing.ClassLabels",
                    "init_args": {"names": str(table), "exclusive": True},
                },
                "processor": {
                    "class_path": "collimate_audio.FilterBank",
                    "init_args": {"seconds": 0.3, "mel_bands": 32},
                },
                "masks": {"class_path": "collimate_audio.SpectrogramMasks"},
                "mixup": {"class_path": "collimate_audio.Mixup"},
            },
        },
        "data": {
            "train": f"{table}?split=train",
            "val": f"{table}?split=val",
            "batch_size": 9,
            "balanced": True,
            "augmentations": {
                "audio": {"class_path": "collimate_audio.SoundAugmentation", "init_args": {"roll": 0.01}}
            },
        },
        "optimization": {"lr": 3e-3, "layer_decay": 0.6, "weight_decay": 0.01, "schedule": "constant", "warmup": 0},
        "trainer": {
            "max_steps": steps,
            "log_every_n_steps": 1,
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "val_check_interval": 3,
            "check_val_every_n_epoch": None,
        },
        "checkpoint": {"every_steps": 3},
    }
    for name, section in sections.items():
        made[name] = {**made.get(name, {}), **section}
    path = output / "recipe.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(made))
    return path


def trained(path, *arguments, resume="never"):
    cli = cli_for([f"--config={path}", *arguments], "train")
    fit(cli.trainer, cli.model, cli.datamodule, resume)
    return cli


@pytest.mark.filterwarnings("ignore")
def test_a_run_that_was_stopped_goes_on_as_if_it_was_not(table, tmp_path):
    """Order, excerpts, masks, partners, dropout: all draws are those of the place in the stream."""
    whole = trained(recipe(table, tmp_path / "whole", 6))
    assert {"val/acc1", "val/mean_per_class_recall", "val/classification"} <= whole.trainer.callback_metrics.keys()
    trained(recipe(table, tmp_path / "halves", 6), "--trainer.max_steps=3")
    path = recipe(table, tmp_path / "halves", 6)
    halves = trained(path, resume="auto")
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(halves.model.state_dict()[name], value, rtol=0, atol=0, msg=name)


@pytest.mark.filterwarnings("ignore")
def test_it_learns_and_its_checkpoint_knows_the_classes(table, tmp_path):
    sections = {
        "optimization": {"lr": 1e-2},
        "data": {"train": f"{table}?split=train", "val": f"{table}?split=val", "batch_size": 9},
    }
    path = recipe(table, tmp_path, 40, **sections)
    cli = trained(path, "--model.mixup=null", "--model.masks=null", "--trainer.val_check_interval=40")
    assert cli.trainer.callback_metrics["val/acc1"] > 0.8
    loaded = collimate.load(tmp_path / "model")
    assert next(iter(loaded.classify([tone(2)])[0])) == "high"
    assert json.loads((tmp_path / "model" / "config.json").read_text())["model"]["init_args"]["labels"]["init_args"][
        "names"
    ] == sorted(NAMES)


def _validated(path, rank):
    cli = cli_for([f"--config={path}"], "train")
    cli.model.trainer = cli.trainer
    cli.datamodule.trainer = cli.trainer
    cli.trainer.strategy.connect(cli.model)
    logged = {}
    cli.model.log_dict = lambda metrics, **_: logged.update(metrics)
    cli.model.eval()
    with torch.no_grad():
        for batch in cli.datamodule.val_dataloader():
            cli.model.validation_step(batch, 0)
        cli.model.on_validation_epoch_end()
    return {name: float(value) for name, value in logged.items()}


@pytest.mark.filterwarnings("ignore")
def test_validation_is_the_same_on_one_rank_and_on_two(table, tmp_path):
    path = recipe(
        table, tmp_path, 1, data={"val": f"{table}?split=val", "val_batch_size": 4, "train": f"{table}?split=train"}
    )
    alone = _validated(path, 0)
    for found in run_on_ranks(_validated, [(path, 0), (path, 1)]):
        assert found == pytest.approx(alone, rel=1e-5)
    assert alone.keys() == {"val/classification", "val/acc1", "val/mean_per_class_recall"}
