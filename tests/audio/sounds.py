"""Sources of short synthetic sounds with captions and classes."""

import numpy as np

from collimate.data import Source

RATE = 16_000
CLASSES = ("low_tone", "high_tone", "noise")


def sound(kind, seconds=0.4, seed=0):
    """A waveform of one of the classes, float32."""
    draw = np.random.default_rng(seed)
    time = np.arange(round(seconds * RATE)) / RATE
    if kind == "noise":
        return (0.3 * draw.normal(size=len(time))).astype(np.float32)
    pitch = {"low_tone": 200, "high_tone": 2500}[kind] * draw.uniform(0.9, 1.1)
    return (0.5 * np.sin(2 * np.pi * pitch * time)).astype(np.float32)


class TonesAndNoises(Source):
    """Sounds of three classes, each as (waveform, rate), with one caption and a class."""

    def __init__(self, size=12, seconds=0.4):
        self.size, self.seconds = size, seconds
        self.name, self.class_names = "tones and noises", list(CLASSES)

    def __len__(self):
        return self.size

    def read(self, index):
        label = index % len(CLASSES)
        return {
            "__key__": f"sound {index}",
            "__source__": self.name,
            "wav": (sound(CLASSES[label], self.seconds, index), RATE),
            "txt": f"this is {CLASSES[label].replace('_', ' ')}",
            "cls": label,
        }
