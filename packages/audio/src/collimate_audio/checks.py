"""What `collimate doctor` tries: that sounds can be written and read on this machine."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import soundfile

from .reading import read_sound


def check() -> str:
    """Write a tone as FLAC and read it back."""
    tone = np.sin(np.arange(8000) * (2 * np.pi * 440 / 16000))
    file = BytesIO()
    soundfile.write(file, tone, 16000, format="FLAC")
    sound, _ = read_sound(file.getvalue(), 16000)
    error = float(np.abs(sound.numpy() - tone).max())
    if error > 1e-3:
        raise RuntimeError(f"a tone came back from FLAC with an error of {error:.2g}")
    return f"soundfile {soundfile.__version__}"
