"""What is padding: the exact rule against its definition, and the official one with its drift."""

import pytest
import torch

from collimate_audio import BEATs, FilterBank
from collimate_audio.padding import real_pieces, real_windows


def test_exact_rule_is_that_of_lone_clips():
    for samples in range(400, 2000, 37):
        mask = (torch.arange(2000) < samples)[None]
        found = real_windows(mask, 400, 160)[0]
        assert found.shape == (1 + (2000 - 400) // 160,)
        assert int(found.sum()) == 1 + (samples - 400) // 160
        assert found[: int(found.sum())].all()


def test_official_rule_cuts_equal_pieces():
    mask = (torch.arange(11) < 4)[None]
    assert real_pieces(mask, 3).tolist() == [[True, True, False]]  # three of three samples, the last two dropped


def test_official_rule_drifts():
    """16 samples a piece where windows move by 160 of 2000: a clip of half the length seems longer than it is."""
    mask = (torch.arange(2000) < 1000)[None]
    assert int(real_pieces(mask, 11).sum()) == 6
    assert int(real_windows(mask, 400, 160).sum()) == 4


@pytest.mark.parametrize("build", [lambda: FilterBank(padding="offical"), lambda: BEATs(layers=1, padding="offical")])
def test_unknown_rules_are_refused(build):
    with pytest.raises(ValueError, match="'exact' or 'official', not 'offical'"):
        build()
