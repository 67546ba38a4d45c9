"""The Python of READMEs and pages runs: a page's blocks one after another, in one namespace."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import collimate
from collimate import cli
from collimate.encoders import Encoder
from collimate.encoding import Encoding
from collimate.processing import ImageProcessor, Tokenizer
from collimate.training import Method

from .pages import PAGES, ROOT, SHELLS, Block, blocks, commands

WITH_PYTHON = [page for page in PAGES if any(block.language == "python" for block in blocks(page))]
WITH_SLOW_PARTS = [page for page in PAGES if any(block.mark == "slow" for block in blocks(page))]


def given() -> dict[str, Any]:
    """What sentences before a block give a name."""
    return {
        "__name__": "docs",
        "collimate": collimate,
        **{each.__name__: each for each in (Method, Encoder, Encoding, ImageProcessor, Tokenizer, torch.Tensor)},
        "image_features": torch.randn(4, 8),
        "text_features": torch.randn(4, 8),
        "logit_scale": torch.tensor(2.0),
        "picture": Image.new("RGB", (64, 64), "red"),
    }


@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda page: str(page.relative_to(ROOT)))
def test_its_python_runs(page: Path, inputs: Path, monkeypatch: pytest.MonkeyPatch):
    """And so do its commands, where they are marked `run`, in their order among the blocks."""
    go_through(page, inputs, monkeypatch, ("", "run"))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("page", WITH_SLOW_PARTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_it_runs_as_a_whole(page: Path, inputs: Path, monkeypatch: pytest.MonkeyPatch):
    """With what takes minutes, such as the training of the demo."""
    go_through(page, inputs, monkeypatch, ("", "run", "slow"))


def go_through(page: Path, inputs: Path, monkeypatch: pytest.MonkeyPatch, marks: tuple[str, ...]) -> None:
    monkeypatch.chdir(inputs)
    monkeypatch.syspath_prepend(inputs)
    names, skipped, python = given(), [], 0
    for block in blocks(page):
        python += block.language == "python"
        if block.mark == "skip":
            skipped.append(f"{block.where}: {block.reason}")
            assert block.reason, f"{block.where}: say why, `<!-- skip: reason -->`"
        elif block.mark in marks and block.language == "python" and block.title is None:
            execute(block, names)
        elif block.mark in marks[1:] and block.language in SHELLS:
            carry_out(block)
    if skipped and len(skipped) == python:
        pytest.skip("; ".join(skipped))


def execute(block: Block, names: dict[str, Any]) -> None:
    """Lines keep their numbers, so that a traceback shows where in the page it went wrong."""
    code = compile("\n" * (block.line - 1) + block.code, str(block.path), "exec")
    exec(code, names)


def carry_out(block: Block) -> None:
    here = [each for each in commands(block.path) if each.mark]
    last = block.line + block.code.count("\n")
    for command in here:
        if block.line <= int(command.where.rpartition(":")[2]) < last:
            sys.stdout.write(f"{command}\n")
            cli.main(command.words)
