"""What surrounds a run: the log, the guards, the checkpoints."""

import csv
import os
import signal
import zipfile
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.loggers import CSVLogger

from collimate.configurable import build
from collimate.training.callbacks import (
    CompileEncoders,
    GracefulStop,
    GradientCache,
    NonFiniteError,
    NonFiniteGuard,
    RunCheckpoint,
    StepLog,
    newest_checkpoint,
)
from collimate.training.method import CHECKPOINT_KEY

from .toy import Toy, ToyLoader


def trainer(folder: Path, steps: int, *callbacks: Callback, **options) -> Trainer:
    return Trainer(
        accelerator="cpu",
        max_steps=steps,
        default_root_dir=folder,
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=options.pop("logger", False),
        enable_checkpointing=any(isinstance(callback, RunCheckpoint) for callback in callbacks),
        **options,
    )


def poison(method: Toy, step: int) -> Callback:
    """Makes one layer's output infinite from a step on."""

    class Poison(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
            if trainer.global_step == step:
                method.towers["text"][4].register_forward_hook(lambda *_: torch.full((8, 8), torch.inf))

    return Poison()


def test_a_non_finite_loss_names_step_and_module_and_keeps_the_batch(tmp_path: Path):
    method = Toy()
    run = trainer(tmp_path, 10, poison(method, 4), NonFiniteGuard(), RunCheckpoint(str(tmp_path), every_steps=1))
    with pytest.raises(NonFiniteError, match=r"step 4 .*towers\.text\.4") as raised:
        run.fit(method, ToyLoader(10))
    saved = torch.load(tmp_path / "non_finite_step4_rank0.pt", weights_only=True)
    torch.testing.assert_close(saved["image"], ToyLoader(5).batches[4]["image"])
    assert str(tmp_path / "non_finite_step4_rank0.pt") in str(raised.value)
    last = newest_checkpoint(tmp_path)
    assert last is not None
    assert last.name == "step=00000004.ckpt"
    state = torch.load(last, weights_only=True)["state_dict"]
    assert all(torch.isfinite(value).all() for value in state.values())


def test_a_bad_input_is_named_rather_than_a_module(tmp_path: Path):
    loader = ToyLoader(3)
    loader.batches[1]["text"][2, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="the input 'text'"):
        trainer(tmp_path, 3, NonFiniteGuard()).fit(Toy(), loader)


def test_non_finite_parameters_are_never_saved(tmp_path: Path):
    class Break(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_) -> None:
            if trainer.global_step == 3:
                pl_module.logit_scale.data.fill_(torch.nan)

    checkpoints = RunCheckpoint(str(tmp_path), every_steps=1)
    with pytest.raises(NonFiniteError, match="logit_scale"):
        trainer(tmp_path, 5, Break(), NonFiniteGuard(), checkpoints).fit(Toy(), ToyLoader(5))
    assert newest_checkpoint(tmp_path).name == "step=00000002.ckpt"


def test_the_log_has_what_tells_a_healthy_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    logger = CSVLogger(tmp_path, name="logs", flush_logs_every_n_steps=1)
    trainer(tmp_path, 4, StepLog(), logger=logger, log_every_n_steps=2).fit(Toy(), ToyLoader(4))
    with open(Path(logger.log_dir) / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["2", "4"]
    for name in ("loss", "samples_per_second", "data_wait", "logit_scale", "similarity_gap", "effective_rank/image"):
        assert float(rows[0][name]) == float(rows[0][name])
    assert float(rows[0]["negatives"]) == 7
    assert 0 <= float(rows[0]["data_wait"]) <= 1
    assert [float(row["worker_ms"]) for row in rows] == [125, 125]
    line = next(line for line in capsys.readouterr().out.splitlines() if "step 2/4" in line)
    for word in ("loss", "samples/s", "data wait", "logit_scale", "gap", "effective rank"):
        assert word in line


def test_the_log_has_a_methods_own_statistics(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    class Telling(Toy):
        def losses(self, embeddings, batch):
            self.statistics = {"weight/text": torch.tensor(0.25), "weight/caption": torch.tensor(1.0), "odd": 3}
            return super().losses(embeddings, batch)

    logger = CSVLogger(tmp_path)
    trainer(tmp_path, 1, StepLog(), logger=logger, log_every_n_steps=1).fit(Telling(), ToyLoader(1))
    rows = list(csv.DictReader((Path(logger.log_dir) / "metrics.csv").open()))
    assert (float(rows[0]["weight/text"]), float(rows[0]["odd"])) == (0.25, 3)
    assert "· weight text 0.250, caption 1.000 · odd 3.000 · lr" in capsys.readouterr().out


def test_only_the_newest_checkpoints_stay_and_they_hold_plain_data(tmp_path: Path):
    trainer(tmp_path, 6, RunCheckpoint(str(tmp_path), every_steps=1, keep=2)).fit(Toy(width=4), ToyLoader(6))
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step=00000005.ckpt", "step=00000006.ckpt"]
    stored = torch.load(tmp_path / "checkpoints" / names[-1], weights_only=True)
    assert stored[CHECKPOINT_KEY]["config"]["init_args"]["width"] == 4


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    trainer(tmp_path, 3, RunCheckpoint(str(tmp_path), every_steps=1)).fit(Toy(), ToyLoader(3))
    folder = tmp_path / "checkpoints"
    newest, second = folder / "step=00000003.ckpt", folder / "step=00000002.ckpt"
    newest.write_bytes(newest.read_bytes()[:-100])
    content = bytearray(second.read_bytes())
    with zipfile.ZipFile(second) as archive:
        weights = max(archive.infolist(), key=lambda info: info.file_size)
    content[weights.header_offset + 200] ^= 0xFF
    second.write_bytes(content)
    assert newest_checkpoint(tmp_path) == folder / "step=00000001.ckpt"
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.count("is damaged") == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_between_two_steps(tmp_path: Path, number: signal.Signals):
    class Raise(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
            if trainer.global_step == 2:
                os.kill(os.getpid(), number)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        trainer(tmp_path, 9, Raise(), GracefulStop()).fit(Toy(), ToyLoader(9))
    assert not ended.value.code
    assert newest_checkpoint(tmp_path).name == "step=00000003.ckpt"
    assert signal.getsignal(signal.SIGTERM) == before


def test_gradient_cache_is_switched_on_by_its_callback(tmp_path: Path):
    full, cached = Toy(), Toy()
    cached.load_state_dict(full.state_dict())
    trainer(tmp_path, 5).fit(full, ToyLoader(5))
    trainer(tmp_path, 5, GradientCache(chunk_size=3)).fit(cached, ToyLoader(5))
    assert cached.gradient_cache == 3
    for a, b in zip(full.parameters(), cached.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_gradient_cache_refuses_a_method_that_does_not_split_its_step(tmp_path: Path):
    class Whole(Toy):
        def loss_terms(self, batch):
            return super().loss_terms(batch)

    with pytest.raises(TypeError, match="does not split"):
        trainer(tmp_path, 1, GradientCache(chunk_size=3)).fit(Whole(), ToyLoader(1))


def test_ema_steps_once_per_optimizer_step_and_is_what_remains(tmp_path: Path):
    weights = []

    class Record(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_) -> None:
            weights.append(pl_module.towers["image"][0].weight.detach().clone())

    method = Toy()
    start = method.towers["image"][0].weight.detach().clone()
    ema = EMAWeightAveraging(decay=0.5)
    trainer(tmp_path, 3, Record(), ema, accumulate_grad_batches=2).fit(method, ToyLoader(6))
    distinct = weights[1::2]  # the weights after each optimizer step
    expected = distinct[0]
    for later in distinct[1:]:
        expected = 0.5 * expected + 0.5 * later
    assert not torch.equal(distinct[-1], start)
    torch.testing.assert_close(method.towers["image"][0].weight, expected)


def test_bf16_keeps_the_loss_in_float32(tmp_path: Path):
    seen = {}

    class Spy(Toy):
        def forward(self, modality, inputs, mask=None):
            encoding = super().forward(modality, inputs, mask)
            seen["encoding"] = encoding.pooled.dtype
            return encoding

        def losses(self, embeddings, batch):
            seen["loss"] = embeddings["image"].dtype
            seen["autocast"] = torch.is_autocast_enabled("cpu")
            return super().losses(embeddings, batch)

    trainer(tmp_path, 2, precision="bf16-mixed").fit(Spy(), ToyLoader(2))
    assert seen == {"encoding": torch.bfloat16, "loss": torch.float32, "autocast": False}


def test_a_method_is_rebuilt_from_its_configuration():
    method = Toy(width=4)
    with pytest.raises(ValueError, match="outside the trusted packages"):
        build(method.config())
    again = build(method.config(), trust=[Toy.__module__.split(".")[0]])
    again.load_state_dict(method.state_dict())
    assert again.config() == method.config()


def test_compile_finds_the_encoders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from collimate.encoders import Encoder

    class Small(Encoder):
        width = 8

        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(6, 8)

        def forward(self, inputs, mask=None):
            from collimate.encoding import Encoding

            return Encoding(self.linear(inputs))

    compiled = []
    monkeypatch.setattr(Small, "compile", lambda self, **options: compiled.append(options))

    class WithEncoder(Toy):
        def __init__(self) -> None:
            super().__init__()
            self.towers["image"] = Small()

        def forward(self, modality, inputs, mask=None):
            return self.towers[modality](inputs) if modality == "image" else super().forward(modality, inputs, mask)

    trainer(tmp_path, 1, CompileEncoders()).fit(WithEncoder(), ToyLoader(1))
    assert compiled == [{"mode": "default", "dynamic": None}]
