"""The switches of docs/training-aids.md are settings that exist, and off they leave the plain optimizer."""

import re
from pathlib import Path

import pytest
import torch
import yaml

from collimate.configurable import build
from collimate.encoders import OpenClipTextEncoder
from collimate.training import Optimization
from collimate.training.frugal import Frugal
from collimate.training.sharpness import SharpnessAware
from collimate.training.sophia import Sophia

PAGE = (Path(__file__).parents[3] / "docs" / "training-aids.md").read_text(encoding="utf-8")
SNIPPETS = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)]
OPTIMIZATIONS = [snippet["optimization"] for snippet in SNIPPETS if "optimization" in snippet]


def tower():
    return OpenClipTextEncoder(width=16, heads=2, layers=1, context_length=8, vocab_size=20)


def test_there_are_switches():
    assert len(OPTIMIZATIONS) >= 4


@pytest.mark.parametrize("settings", OPTIMIZATIONS, ids=str)
def test_an_optimizer_is_built_as_the_page_says(settings):
    optimization = Optimization(**settings)
    optimizer = optimization.optimizer(tower())
    kinds = {"sophia": Sophia, "frugal": Frugal}
    expected = SharpnessAware if "sharpness" in settings else kinds.get(settings.get("name"), torch.optim.AdamW)
    assert type(optimizer) is expected
    assert optimization.lr_factor(1000)(500) > 0


def test_sophia_and_frugal_keep_their_own_betas_and_epsilon():
    for settings in OPTIMIZATIONS:
        if settings.get("name") in ("sophia", "frugal"):
            group = Optimization(**settings).optimizer(tower()).param_groups[0]
            assert (group["betas"], group["eps"]) in [((0.96, 0.99), 1e-12), ((0.9, 0.999), 1e-8)]


def test_callbacks_and_samplings_are_built():
    for snippet in SNIPPETS:
        for callback in snippet.get("trainer", {}).get("callbacks", []):
            module, _, name = callback["class_path"].rpartition(".")
            getattr(__import__(module, fromlist=[name]), name)(**callback["init_args"])
        if sampling := snippet.get("data", {}).get("sampling"):
            assert (
                build(sampling).config()["init_args"] | sampling["init_args"] == build(sampling).config()["init_args"]
            )


def test_off_is_the_plain_optimizer():
    assert type(Optimization().optimizer(tower())) is torch.optim.AdamW
