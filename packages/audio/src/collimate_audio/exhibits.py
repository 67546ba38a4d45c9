"""How sounds are evaluated: the drawing and the player of reports, windows of long clips, prompts.

Shape legend: N samples.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import soundfile
from jaxtyping import Float

from collimate.evaluation.modalities import Exhibit, Manner, register_evaluation
from collimate_audio.reading import read_sound, resampled

if TYPE_CHECKING:
    from PIL import Image

RATE = 16_000  # of sounds whose rate nobody says, and of what is drawn
BANDS, HEIGHT, WIDTH = 64, 128, 192  # ours, of the drawing: mel bands, pixels
RANGE = 18.4  # ours: what is drawn, 80 dB, in natural logarithms of power
SECONDS = 10.0  # ours: so much of a clip is drawn and played
LARGEST = 400_000  # ours: bytes of a clip in a page; larger ones are drawn only

TEMPLATES = {
    "sound": ["This is a sound of {}."],  # LAION-AI/CLAP, evaluate/eval_zeroshot_classification.py
    "sound_no_stop": ["This is a sound of {}"],  # as the package's own example has it
    "sounds": [  # open_clip, its audio templates
        "A sound of {}.",
        "The sound of {}.",
        "Audio of {}.",
        "A recording of {}.",
        "The sound of a {}.",
    ],
    "recording": [  # ours
        "one can hear {}",
        "{} can be heard",
        "a field recording with {}",
        "someone recorded {}",
        "in this clip there is {}",
        "{} in the foreground",
        "{}",
    ],
    "music": ["This audio is a {} song."],  # LAION-AI/CLAP, for genres
}


def show_sound(raw: Any) -> Exhibit:
    """A drawing of a sound's log-mel spectrogram, and the sound as FLAC, of at most its first ten seconds.

    Args:
        raw: as `collimate_audio.FilterBank` takes it.
    """
    sound, rate = read_sound(raw, RATE)
    sound = sound[: round(SECONDS * rate)]
    file = io.BytesIO()
    soundfile.write(file, sound.clamp(-1, 1).numpy(), rate, format="FLAC", subtype="PCM_16")
    played = file.getvalue()
    return Exhibit(spectrogram_picture(sound, rate), played if len(played) <= LARGEST else None, "audio/flac")


def spectrogram_picture(sound: Float[Any, " N"], rate: int) -> Image.Image:
    """Time to the right, pitch upwards; the loudest is bright, and what is 80 dB below it is dark."""
    import matplotlib
    from PIL import Image

    from collimate_audio.filter_bank import filter_bank, frame_samples

    sound = resampled(sound, rate, RATE)
    window, _ = frame_samples(RATE)
    if len(sound) < window:
        sound = sound.repeat(-(-window // len(sound)))
    bands = filter_bank(sound[None], RATE, BANDS)[0].T.flip(0).numpy()
    shade = np.clip(1 + (bands - bands.max()) / RANGE, 0, 1)
    pixels = matplotlib.colormaps["magma"](shade, bytes=True)[..., :3]
    return Image.fromarray(np.ascontiguousarray(pixels)).resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR)


def sound_window(raw: Any, processor: Any, number: int, count: int) -> Any:
    """Window `number` of `count` of a sound; see `collimate.evaluation.modalities.Manner`.

    Args:
        raw: as `processor` takes it.
        processor: has `samples`, the length of its input, and `sample_rate`.
    """
    sound, rate = read_sound(raw, processor.sample_rate)
    size = round(processor.samples / processor.sample_rate * rate)
    if len(sound) <= size:
        return sound.numpy(), rate
    first = round((len(sound) - size) * number / max(count - 1, 1))
    return sound[first : first + size].numpy(), rate


register_evaluation(
    "audio",
    Manner(
        show=show_sound,
        window=sound_window,
        templates="sound",
        template_sets=TEMPLATES,
        spaced_names=True,
        ranks=True,
    ),
)
