"""Parts of recipes in READMEs and pages are such as `train` takes: laid over a demo, they are understood."""

from pathlib import Path

import pytest
import yaml

from .pages import PAGES, Block, blocks
from .parsing import parse

SECTIONS = {"output", "model", "data", "optimization", "trainer", "checkpoint", "evaluation"}


def parts_of_recipes() -> list[Block]:
    found = [block for page in PAGES for block in blocks(page) if block.language == "yaml" and block.title is None]
    return [block for block in found if yaml.safe_load(block.code).keys() <= SECTIONS]


@pytest.mark.parametrize("block", parts_of_recipes(), ids=lambda block: block.where)
def test_it_is_understood(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    part = tmp_path / "part.yaml"
    part.write_text(block.code)
    try:
        parse(["vision-language", "train", "--config", "clip_demo", "--config", str(part)], monkeypatch)
    except SystemExit:
        pytest.fail(f"{block.where}\n{capsys.readouterr().err[-2000:]}")
