"""A CLIP and a CLAP of random weights that share a text tower, saved as training saves them; and small data."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from collimate.checkpoints import save, trained_processor, trained_tower
from collimate.encoders import NoProjection, OpenClipTextEncoder, TimmImageEncoder
from collimate.processing import ClipTokenizer, ImageProcessor
from collimate_audio import CLAP, BEATs, FilterBank
from collimate_vision_language import CLIP

WIDTH = 16


def picture_text(seed: int = 0) -> CLIP:
    torch.manual_seed(seed)
    return CLIP(
        TimmImageEncoder("resnet10t", model_args={"channels": [8, 8, 16, 16], "stem_width": 8}),
        OpenClipTextEncoder(context_length=12, width=16, heads=2, layers=1),
        ImageProcessor(32),
        ClipTokenizer(12),
        embed_dim=WIDTH,
    )


def sound_text(source: Path | str, seed: int = 1) -> CLAP:
    """Sounds towards the texts of another model."""
    torch.manual_seed(seed)
    shape = {"width": 16, "layers": 1, "heads": 2, "hidden": 16, "patch_width": 16}
    return CLAP(
        BEATs(**shape, position_kernel=8, position_groups=2),
        trained_tower(str(source)),
        FilterBank(seconds=0.5),
        trained_processor(str(source)),
        embed_dim=WIDTH,
        text_projection=NoProjection(WIDTH),
    )


def write_pair(folder: Path) -> list[str]:
    """The two model folders."""
    save(picture_text(), folder / "clip")
    save(sound_text(folder / "clip"), folder / "clap")
    return [str(folder / "clip"), str(folder / "clap")]


def write_data(folder: Path, count: int = 7) -> dict[str, str]:
    """Pictures with a text beside each but the last, and sounds without texts, by modality."""
    import soundfile

    generator = np.random.default_rng(0)
    for name in ("photos", "sounds"):
        (folder / name).mkdir(parents=True)
    for number in range(count):
        pixels = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((40, 40)).save(folder / "photos" / f"{number}.png")
        if number < count - 1:
            (folder / "photos" / f"{number}.txt").write_text(f"picture {number}")
        tone = 0.3 * np.sin(2 * np.pi * 200 * (number + 1) * np.arange(8000) / 16_000)
        soundfile.write(folder / "sounds" / f"{number}.wav", tone, 16_000)
    return {"image": str(folder / "photos"), "audio": str(folder / "sounds")}
