"""Weights in and out of files: nothing is run, nothing half-written stays, and errors name the file."""

import os
import pickle
from pathlib import Path

import pytest
import torch

from collimate.checkpoints.files import (
    CheckpointError,
    read_pickle,
    read_safetensors,
    read_state_dict,
    replaced_folder,
    write_safetensors,
)

WEIGHTS = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.tensor(3)}


class Malicious:
    """A pickle that makes a file when it is read with an unguarded reader."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("wrap", [lambda evil: evil, lambda evil: {"state_dict": {"a": evil}}])
def test_a_malicious_pickle_is_refused_without_running_it(tmp_path, wrap):
    trace, path = tmp_path / "was-run", tmp_path / "weights.pt"
    torch.save(wrap(Malicious(trace)), path)
    for reader in (read_pickle, read_state_dict):
        with pytest.raises(CheckpointError, match=r"weights\.pt: refused"):
            reader(path)
    plain = tmp_path / "plain.pt"
    plain.write_bytes(pickle.dumps(Malicious(trace)))
    with pytest.raises(CheckpointError, match=r"plain\.pt"):
        read_state_dict(plain)
    assert not trace.exists()
    torch.load(path, weights_only=False)  # the trap itself works
    assert trace.exists()


@pytest.mark.parametrize("keep", [0, 5, 8, 40, -1])
def test_truncated_safetensors_name_the_file(tmp_path, keep):
    path = tmp_path / "model.safetensors"
    write_safetensors(WEIGHTS, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: not a whole safetensors file"):
        read_safetensors(path)


def test_truncated_torch_files_name_the_file(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(WEIGHTS, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"weights\.pt"):
        read_state_dict(path)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="absent"):
        read_safetensors(tmp_path / "absent.safetensors")
    with pytest.raises(CheckpointError, match="absent"):
        read_state_dict(tmp_path / "absent.pt")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of TorchScript, which OpenAI's files are
def test_every_published_form_reads_alike(tmp_path):
    class Holder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a = torch.nn.Linear(3, 2, bias=False)

        def forward(self, inputs):
            return self.a(inputs)

    module = Holder()
    half = {f"module.{name}": value.half() for name, value in module.state_dict().items()}
    torch.save({"state_dict": half, "epoch": 3}, tmp_path / "open_clip.pt")
    torch.save(half | {"input_resolution": torch.tensor(2)}, tmp_path / "plain.bin")
    write_safetensors(half, tmp_path / "model.safetensors")
    torch.jit.script(module.half()).save(str(tmp_path / "archive.pt"))
    for name in ("open_clip.pt", "plain.bin", "model.safetensors", "archive.pt"):
        weights = read_state_dict(tmp_path / name)
        assert list(weights) == ["a.weight"], name
        assert weights["a.weight"].dtype == torch.float32
        assert torch.equal(weights["a.weight"], module.a.weight.float())


def test_a_file_without_weights_is_named(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "epoch.pt")
    with pytest.raises(CheckpointError, match=r"epoch\.pt: holds no state dict"):
        read_state_dict(tmp_path / "epoch.pt")


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "deep" / "model"
    with replaced_folder(folder) as fresh:
        (fresh / "file").write_text("first")
    with pytest.raises(IsADirectoryError), replaced_folder(folder) as fresh:
        fresh.write_text("a folder is no file")
    assert (folder / "file").read_text() == "first"
    with replaced_folder(folder) as fresh:
        (fresh / "other").write_text("third")
    assert [path.name for path in folder.iterdir()] == ["other"]
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
