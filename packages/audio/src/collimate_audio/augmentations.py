"""What training changes in sounds: where they are cut and begin, which frames and bands are hidden, what is mixed in.

`SoundAugmentation` works on each sample where it is read; `SpectrogramMasks` and `Mixup` on batches, on the device. All
draws depend on the samples' places in the stream alone, so that a stopped run goes on with those that it would have
made. Nothing here acts in evaluation.

Shape legend: B clips, N samples, F frames, M mel bands, K classes.
"""

from __future__ import annotations

import math
import random
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from collimate.configurable import Configurable
from collimate.data import Augmentation
from collimate_audio.filter_bank import FilterBank, RawSound
from collimate_audio.reading import read_sound


class SoundAugmentation(Augmentation):
    """A random excerpt of sounds that are longer than the processor takes, and a circular shift in time.

    Args:
        crop: cut out at a random place; otherwise the beginning is kept, as in evaluation.
        roll: shift in time by a random number of so many seconds, what leaves at the end coming back in front; by any
            number of samples if 0; not at all if None. 0 and 1 in ESPnet, for AudioSet and ESC-50.
    """

    def __init__(self, crop: bool = True, roll: float | None = None) -> None:
        self.crop, self.roll = crop, roll

    def __call__(self, raw: RawSound, processor: FilterBank) -> Float[Tensor, " N"]:
        sound, rate = read_sound(raw, processor.sample_rate)
        longest = math.ceil(processor.samples * rate / processor.sample_rate)
        if len(sound) > longest:
            start = random.randrange(len(sound) - longest + 1) if self.crop else 0
            sound = sound[start : start + longest]
        if self.roll is not None:
            step = max(1, round(self.roll * rate))
            sound = sound.roll(step * random.randrange(math.ceil(len(sound) / step)))
        return processor((sound, rate))


class SpectrogramMasks(Configurable):
    """Frames and bands that are hidden from the encoder: SpecAugment without its time warp.

    Park et al. 2019, arXiv 1904.08779, section 2: of each mask the width is drawn from 0 to the widest, then the place.
    What is hidden becomes 0, the mean of the data. torchaudio's masks know neither how long a clip is without its
    padding, which may then be all that they hide, nor whose draws they are.

    Args:
        time_masks: masks in time.
        time_share: the widest of these, as a share of a clip's real frames.
        frequency_masks: masks in frequency.
        frequency_share: the widest of these, as a share of the bands.

    Raises:
        ValueError: a share is not between 0 and 1.
    """

    def __init__(
        self, time_masks: int = 1, time_share: float = 0.06, frequency_masks: int = 0, frequency_share: float = 0.0
    ) -> None:
        for name, share in (("time_share", time_share), ("frequency_share", frequency_share)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name} is a share, between 0 and 1, not {share:g}.")
        self.time_masks, self.time_share = time_masks, time_share
        self.frequency_masks, self.frequency_share = frequency_masks, frequency_share

    @property
    def draws(self) -> tuple[int, int]:
        """The shape of the numbers that decide the masks of one clip: a width and a place for each."""
        return self.time_masks + self.frequency_masks, 2

    def __call__(
        self, bank: Float[Tensor, "B F M"], frames: Bool[Tensor, "B F"] | None, noise: Float[Tensor, "B masks 2"]
    ) -> Float[Tensor, "B F M"]:
        """The filter bank with its masks.

        Args:
            bank: normalised.
            frames: True where a frame is real; those come first in each clip.
            noise: uniform in [0, 1), of the shape `draws` for each clip; time masks first.
        """
        length = bank.new_full((len(bank),), bank.shape[1]) if frames is None else frames.sum(1).to(bank.dtype)
        bands = bank.new_full((len(bank),), bank.shape[2])
        times, frequencies = noise.split([self.time_masks, self.frequency_masks], 1)
        hidden_frames = _masked(times, length, self.time_share, bank.shape[1])
        hidden_bands = _masked(frequencies, bands, self.frequency_share, bank.shape[2])
        return bank.masked_fill(hidden_frames[:, :, None] | hidden_bands[:, None, :], 0.0)


class Mixup(Configurable):
    """Clips with others of the batch mixed into them, and so their labels: l x_i + (1 - l) x_j, l ~ Beta(a, a).

    Zhang et al. 2018, arXiv 1710.09412, on waveforms. The mixture is as long as the shorter of the two. Partners are of
    the same rank's batch.

    Args:
        alpha: a.
        probability: that a clip gets a partner.

    Raises:
        ValueError: alpha is not positive, or probability is none.
    """

    def __init__(self, alpha: float = 0.8, probability: float = 0.8) -> None:
        if alpha <= 0 or not 0 <= probability <= 1:
            raise ValueError(f"alpha is positive and probability from 0 to 1, not {alpha:g} and {probability:g}.")
        self.alpha, self.probability = alpha, probability

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch with other `audio` (B, N), NaN where it is padding, and `labels` (B, K). Draws are torch's own."""
        audio, labels = batch["audio"], batch["labels"]
        size = len(audio)
        share = torch.distributions.Beta(self.alpha, self.alpha).sample((size,))
        partners = torch.randperm(size).to(audio.device)
        alone = (torch.rand(size) >= self.probability).to(audio.device)[:, None]
        share = share.to(audio.device)[:, None]

        def mixed(rows: Tensor) -> Tensor:  # NaN stays NaN: a clip is real where both are
            return torch.where(alone, rows, share * rows + (1 - share) * rows[partners])

        return {**batch, "audio": mixed(audio), "labels": mixed(labels)}


def _masked(noise: Tensor, lengths: Tensor, share: float, size: int) -> Bool[Tensor, "B size"]:
    """Which of `size` places masks hide, whose widths are at most a share of the lengths, within them."""
    widths = (noise[..., 0] * ((share * lengths).floor() + 1)[:, None]).floor()
    starts = (noise[..., 1] * (lengths[:, None] - widths + 1)).floor()
    places = torch.arange(size, device=noise.device)
    inside = (places >= starts[..., None]) & (places < (starts + widths)[..., None])
    return inside.any(1)
