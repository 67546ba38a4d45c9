"""Excerpts, shifts, masks and mixtures: each against its definition, deterministic, and blind to padding."""

import numpy as np
import pytest
import torch

from collimate.data.loading import restoring_generators, seed_generators
from collimate_audio import FilterBank, Mixup, SoundAugmentation, SpectrogramMasks
from collimate_audio.draws import noise_of

RATE = 16_000


def counted(samples: int) -> np.ndarray:
    """Samples that say where they stand."""
    return np.arange(samples, dtype=np.float32) / samples


def drawn(augmentation, sound, processor, place):
    with restoring_generators():
        seed_generators(0, place)
        return augmentation(sound, processor)


def test_excerpts_lie_anywhere_and_are_the_same_for_the_same_place():
    processor, sound = FilterBank(0.5), counted(2 * RATE)
    starts = set()
    for place in range(40):
        found = drawn(SoundAugmentation(), sound, processor, place)
        assert torch.equal(found, drawn(SoundAugmentation(), sound, processor, place))
        start = round(float(found[0]) * 2 * RATE)
        torch.testing.assert_close(found, torch.from_numpy(sound)[start : start + RATE // 2])
        starts.add(start)
    assert len(starts) > 30
    assert min(starts) < RATE // 4
    assert max(starts) > 5 * RATE // 4


def test_excerpts_of_other_rates_are_those_of_the_whole_resampled():
    processor = FilterBank(0.5)
    time = np.arange(3 * 44_100) / 44_100
    tone = np.sin(2 * np.pi * 440 * time).astype(np.float32)
    found = drawn(SoundAugmentation(), (tone, 44_100), processor, 1)
    assert found.shape == (RATE // 2,)
    assert found.isfinite().all()
    spectrum = torch.fft.rfft(found).abs()
    assert int(spectrum.argmax()) == 220


def test_short_sounds_are_as_without_augmentation():
    processor, sound = FilterBank(0.5), counted(RATE // 4)
    torch.testing.assert_close(drawn(SoundAugmentation(), sound, processor, 0), processor(sound), equal_nan=True)


@pytest.mark.parametrize(("roll", "step"), [(0.0, 1), (0.1, RATE // 10)])
def test_shifts_are_circular_and_in_steps(roll, step):
    processor, sound = FilterBank(0.5), counted(RATE // 2)
    shifts = set()
    for place in range(30):
        found = drawn(SoundAugmentation(roll=roll), sound, processor, place)
        shift = int(found.argmin())
        torch.testing.assert_close(found, torch.from_numpy(sound).roll(shift))
        assert shift % step == 0
        shifts.add(shift)
    assert len(shifts) == (5 if step > 1 else len(shifts))
    assert len(shifts) > 3


def test_masks_are_as_wide_as_drawn_and_within_the_clip():
    masks = SpectrogramMasks(1, 0.5, 1, 0.25)
    bank = torch.ones(3, 20, 16)
    frames = torch.arange(20) < torch.tensor([20, 10, 4])[:, None]
    noise = torch.tensor([[[0.99, 0.0], [0.99, 0.99]], [[0.99, 0.99], [0.0, 0.5]], [[0.5, 0.5], [0.0, 0.0]]])
    hidden = masks(bank, frames, noise) == 0
    assert hidden[0, :10].all()
    assert hidden[0, 10:, 12:].all()
    assert not hidden[0, 10:, :12].any()
    assert hidden[1].all(1).tolist() == [5 <= frame < 10 for frame in range(20)]  # the padding does not count
    assert hidden[2].all(1).sum() == 1
    assert not hidden[2, 4:].any()


def test_masks_hide_the_expected_share():
    masks = SpectrogramMasks(2, 0.2, 0, 0.0)
    noise = torch.rand(4000, *masks.draws, generator=torch.Generator().manual_seed(0))
    share = (masks(torch.ones(4000, 100, 16), None, noise)[:, :, 0] == 0).float().mean()
    assert float(share) == pytest.approx(1 - (1 - 0.1) ** 2, abs=0.01)  # each hides a tenth on average


def test_masks_are_those_of_a_place_on_any_number_of_ranks():
    masks = SpectrogramMasks()
    bank = torch.ones(4, 200, 16)
    places = torch.arange(4)
    whole = masks(bank, None, noise_of({"position": places}, 3, bank, *masks.draws))
    for rank in range(2):
        part = bank[rank::2]
        assert torch.equal(
            masks(part, None, noise_of({"position": places[rank::2]}, 3, part, *masks.draws)), whole[rank::2]
        )
    assert (whole == 0).any()


def batch(size=64):
    audio = torch.randn(size, 50, generator=torch.Generator().manual_seed(0))
    for row in range(size):
        audio[row, 50 - row % 20 :] = torch.nan if row % 20 else audio[row, 50:]
    return {"audio": audio, "labels": torch.eye(size), "position": torch.arange(size)}


def test_mixtures_mix_sound_and_labels_by_the_same_share():
    torch.manual_seed(1)
    given = batch()
    found = Mixup(0.8, 0.7)(given)
    alone = 0
    for row, labels in enumerate(found["labels"]):
        assert float(labels.sum()) == pytest.approx(1)
        share = float(labels[row])
        other = int(labels.index_fill(0, torch.tensor([row]), 0).argmax())
        if share == 1:
            alone += 1
            torch.testing.assert_close(found["audio"][row], given["audio"][row], equal_nan=True, atol=0, rtol=0)
            continue
        mixed = share * given["audio"][row] + (1 - share) * given["audio"][other]
        torch.testing.assert_close(found["audio"][row], mixed, equal_nan=True)
        real = given["audio"][[row, other]].isfinite().sum(1).min()
        assert found["audio"][row].isfinite().sum() == real  # as long as the shorter
    assert 8 <= alone <= 32
    assert torch.equal(found["position"], given["position"])


def test_mixtures_never_without_a_partner_drawn():
    given = batch()
    found = Mixup(probability=0.0)(given)
    torch.testing.assert_close(found["audio"], given["audio"], equal_nan=True, atol=0, rtol=0)
    assert torch.equal(found["labels"], given["labels"])


@pytest.mark.parametrize(
    "make",
    [
        lambda: Mixup(0.0),
        lambda: Mixup(1.0, 1.5),
        lambda: SpectrogramMasks(1, 1.5),
        lambda: SpectrogramMasks(1, 0.1, 1, -1),
    ],
)
def test_settings_out_of_range(make):
    with pytest.raises(ValueError, match=r"probability|share"):
        make()
