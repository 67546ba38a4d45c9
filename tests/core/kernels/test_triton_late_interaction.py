"""Late interaction in Triton gives torch's numbers: interpreted on any machine, compiled where there is a GPU."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

PROGRAM = Path(__file__).with_name("triton_late_interaction_agrees.py")


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_interpreted_kernels_agree_with_torch():
    done = subprocess.run(
        [sys.executable, str(PROGRAM)], env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True
    )
    assert done.stdout.endswith("agree\n"), done.stderr[-3000:]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_compiled_kernels_agree_with_torch():
    done = subprocess.run([sys.executable, str(PROGRAM), "cuda"], capture_output=True, text=True)
    assert done.stdout.endswith("agree\n"), done.stderr[-3000:]
