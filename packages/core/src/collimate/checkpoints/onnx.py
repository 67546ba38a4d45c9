"""Encoders as ONNX files, one a modality, with any batch size. Needs the extra `collimate[onnx]`."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from collimate.training.method import Method


class _Tower(nn.Module):
    """One modality of a method as a function of tensors."""

    def __init__(self, method: Method, modality: str) -> None:
        super().__init__()
        self.method, self.modality = method, modality

    def forward(self, inputs: Tensor) -> Tensor:
        return self.method(self.modality, inputs).pooled


def write_onnx(method: Method, modality: str, example: Tensor, path: Path) -> Callable[[Tensor], Tensor]:
    """Write one modality's way into the joint space.

    The file's input is named as the modality and holds finished inputs (normalised pixels, ids); its output is
    `features`, (B, D), not normalised.

    Args:
        method: the method, in evaluation mode.
        modality: which encoder.
        example: a batch of at least two finished inputs.
        path: the file to write.

    Returns:
        The written file as a function, run by onnxruntime.
    """
    import onnxruntime

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own code
        program = torch.onnx.export(
            _Tower(method, modality),
            (example,),
            dynamo=True,
            input_names=[modality],
            output_names=["features"],
            dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
            verbose=False,
        )
    assert program is not None
    program.save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda inputs: torch.from_numpy(session.run(None, {modality: inputs.numpy()})[0])
