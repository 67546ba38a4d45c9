"""Draw the pictures of docs/gallery.md: what reports show of each modality, on the procedural world.

    collimate vision-language train --config clip_demo --data.train 'world:train?objects=1&size=32' \\
        --model.init_args.image_processor.init_args.size 32 --data.batch_size 64 --trainer.max_steps 250
    python -m tools.gallery runs/clip_demo/model

Without a model, the figures of one stay as they are.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from collimate.data import open_source
from collimate.data.decoding import decode

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "gallery"
SIDE = 384  # pixels of a picture, at most


def scene() -> Image.Image:
    """A scene with the boxes of its regions."""
    from collimate.evaluation.pictures import boxed

    sample = open_source("world:test?objects=3&size=256&length=8").read(3)
    picture = Image.fromarray(sample["png"])
    boxes = [[each / 256 for each in region["box"]] for region in sample["regions.json"]]
    return boxed(picture, boxes[:1], [], boxes[1:], True)


def sound() -> Image.Image:
    """The spectrogram of a clip of three sounds."""
    from collimate_audio.exhibits import show_sound

    sample = open_source("world-sound:test?objects=3&seconds=4&length=8").read(2)
    return _opened(show_sound(sample["wav"]).picture)


def clip() -> Image.Image:
    """Four frames of a clip, side by side."""
    frames = open_source("world-clip:test?objects=2&size=128&length=8").read(1)["mp4"]
    return Image.fromarray(np.concatenate(list(frames[:: len(frames) // 4][:4]), axis=1))


def film() -> Image.Image:
    """The chest film of a synthetic patient."""
    return Image.fromarray(_visit()["png"])


def ecg() -> Image.Image:
    """The ECG of the same visit, as reports show it."""
    from collimate_medical.ecg_paper import show_ecg

    return _opened(show_ecg(decode("ecg.npz", _visit()["ecg.npz"])).picture)


def room() -> Image.Image:
    """A room, with the box of the object that a sentence means."""
    from collimate_3d.evaluation.pictures import grounding_picture
    from collimate_3d.scenes.processing import checked_scene

    sample = open_source("world-rooms:test?objects=8&length=8").read(0)
    target = sample["referrals.json"][0]["target"]
    return grounding_picture(checked_scene(sample["scene.npz"]), target, target)


def street() -> Image.Image:
    """A sweep from above, with the boxes of its objects."""
    from collimate_3d.lidar import Objects, decode_sweep
    from collimate_3d.lidar.pictures import picture_from_above

    sample = open_source("world-sweeps:test?objects=6-12&length=8").read(0)
    objects = Objects.from_json(sample["objects.json"])
    return picture_from_above(decode_sweep(sample["sweep.npz"]).xyz, objects, bounds=(0, -24, 48, 24), scale=8)


def trained(model: str) -> list[tuple[str, Image.Image]]:
    """What reports draw of a trained model of pictures and texts: its classes, its vectors, its ranks."""
    import collimate
    from collimate.evaluation import evaluate_retrieval, evaluate_zero_shot

    method, data = collimate.load(model), open_source("world:test?objects=1&length=640&size=32")
    found = evaluate_zero_shot(method, data, templates="photo", resamples=2)
    ranked = evaluate_retrieval(method, open_source("world:test?objects=1&length=200&size=32"), resamples=2)
    names = ("confusion", "vectors", "recall")
    return list(zip(names, [*_figures(found), *_figures(ranked)][:3], strict=True))


class _Figures:
    """A report that keeps its figures only."""

    def __init__(self) -> None:
        self.drawn: list[Image.Image] = []

    def add_figure(self, figure: Any, *_: Any) -> None:
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=80, bbox_inches="tight", facecolor="white")
        self.drawn.append(Image.open(file))

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


def _figures(result: Any) -> list[Image.Image]:
    report = _Figures()
    result.add_to(report)
    return report.drawn


def _visit() -> dict[str, Any]:
    return open_source("world-patients:test?patients=8&size=256").read(1)


def _opened(picture: Any) -> Image.Image:
    """What an exhibit shows, which may be a file's bytes."""
    return Image.open(io.BytesIO(picture)) if isinstance(picture, bytes) else picture


def write(name: str, picture: Image.Image) -> None:
    """A PNG of few colours and of at most `SIDE` pixels a side, or three times that for rows of frames."""
    limit = (3 * SIDE, SIDE) if picture.width > 2 * picture.height else (2 * SIDE, SIDE)
    picture = picture.convert("RGB")
    picture.thumbnail(limit, Image.Resampling.LANCZOS)
    FOLDER.mkdir(exist_ok=True)
    picture.quantize(96).save(FOLDER / f"{name}.png", optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the pictures of docs/gallery.md.")
    parser.add_argument("model", nargs="?", help="a folder of a trained model of pictures and texts")
    model = parser.parse_args().model
    for draw in (scene, sound, clip, film, ecg, room, street):
        write(draw.__name__, draw())
    for name, picture in trained(model) if model else []:
        write(name, picture)


if __name__ == "__main__":
    main()
