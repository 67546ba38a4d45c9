"""The fused kernels give torch's numbers: in Triton's interpreter on any machine, compiled where there is a GPU."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from collimate.losses import clip_loss, siglip_loss
from collimate.testing import assert_close, oracles

PROGRAMS = pytest.mark.parametrize("program", ["triton_agrees.py", "triton_late_interaction_agrees.py"])


@PROGRAMS
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_interpreted_kernels_agree_with_torch(program):
    agrees(program, env={**os.environ, "TRITON_INTERPRET": "1"})


@PROGRAMS
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_compiled_kernels_agree_with_torch(program):
    agrees(program, "cuda")


def agrees(program, *arguments, **options):
    command = [sys.executable, str(Path(__file__).with_name(program)), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.stdout.endswith("agree\n"), done.stderr[-3000:]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_losses_on_a_gpu_are_the_dense_losses():
    image, text = torch.randn(2, 300, 64, dtype=torch.float64)
    found, expected = {}, {}
    for into, dtype, device, losses in (
        (expected, torch.float64, "cpu", (oracles.clip_loss, lambda i, t, s: oracles.siglip_loss(i, t, s, -5.0))),
        (found, torch.float32, "cuda", (clip_loss, lambda i, t, s: siglip_loss(i, t, s, -5.0))),
    ):
        for name, loss in zip(("clip", "siglip"), losses, strict=True):
            leaf = image.to(device, dtype, copy=True).requires_grad_()
            value = loss(leaf, text.to(device, dtype), torch.tensor(20.0, device=device, dtype=dtype))
            value.backward()
            into |= {name: value.detach().cpu(), f"{name} gradient": leaf.grad.cpu()}
    assert_close(found, expected, 1e-4, "on a GPU against dense float64")
