"""A real but tiny training job: JPEG files, a table of captions, CLIP with two small transformers."""

import json
from pathlib import Path

import numpy as np
import yaml
from PIL import Image


def write_pictures(folder: Path, count: int = 40, side: int = 32) -> Path:
    """JPEG files and the table that names them; the table's path."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    with (folder / "captions.jsonl").open("w") as table:
        for index in range(count):
            tint = generator.integers(0, 256, 3)
            noise = generator.integers(-20, 21, (side, side, 3))
            Image.fromarray(np.clip(tint + noise, 0, 255).astype("uint8")).save(folder / f"{index}.jpg")
            caption = f"a picture tinted {tint[0] // 32} {tint[1] // 32} {tint[2] // 32}"
            row = {"image": f"{index}.jpg", "caption": caption, "cls": index // 2 % 2}
            table.write(json.dumps(row) + "\n")
    return folder / "captions.jsonl"


def write_hands(folder: Path, count: int = 8) -> Path:
    """Pictures with key points, and `neighbours.npy` with a partner of each; the table's path."""
    table, generator = write_pictures(folder, count), np.random.default_rng(0)
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    lines = [json.dumps(row | {"keypoints": generator.random((21, 2)).tolist()}) for row in rows]
    table.write_text("\n".join(lines) + "\n")
    np.save(folder / "neighbours.npy", np.arange(count)[:, None] ^ 1)
    return table


def write_sounds(folder: Path, count: int = 8, seconds: float = 1.0, rate: int = 16_000) -> Path:
    """WAV files of noisy tones in two classes, and the table that names them; the table's path."""
    import soundfile

    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    time = np.arange(round(seconds * rate)) / rate
    with (folder / "sounds.jsonl").open("w") as table:
        for index in range(count):
            wave = 0.3 * np.sin(2 * np.pi * 300 * 3 ** (index % 2) * time) + 0.03 * generator.standard_normal(len(time))
            soundfile.write(folder / f"{index}.wav", wave, rate)
            row = {"file": f"{index}.wav", "cls": index % 2, "caption": f"a tone {('below', 'above')[index % 2]}"}
            table.write(json.dumps(row) + "\n")
    return folder / "sounds.jsonl"


def write_pairs(folder: Path, count: int = 4) -> str:
    """Two pictures a statement, imported from the layout of NLVR2; the shards."""
    from collimate_vision_language.tcl.importing import import_nlvr

    table = write_pictures(folder / "pictures", 2 * count)
    lines = []
    for index in range(count):
        for side in range(2):
            Image.open(table.parent / f"{2 * index + side}.jpg").save(table.parent / f"train-{index}-0-img{side}.png")
        row = {"identifier": f"train-{index}-0-{index % 2}", "sentence": f"Both are {index}.", "label": str(index < 2)}
        lines.append(json.dumps(row))
    (folder / "train.json").write_text("\n".join(lines))
    import_nlvr(str(table.parent), str(folder / "train.json"), str(folder / "shards"))
    return str(folder / "shards/*.tar")


def tiny_recipe(train: Path | str, output: Path, steps: int, **sections: dict) -> dict:
    """A whole recipe; `sections` are merged into it."""
    recipe = {
        "output": str(output),
        "model": {
            "class_path": "collimate_vision_language.CLIP",
            "init_args": {
                "image_encoder": {
                    "class_path": "collimate.encoders.OpenClipImageEncoder",
                    "init_args": {"image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "head_width": 8},
                },
                "text_encoder": {
                    "class_path": "collimate.encoders.OpenClipTextEncoder",
                    "init_args": {"context_length": 12, "width": 16, "layers": 1, "heads": 2},
                },
                "image_processor": {"class_path": "collimate.processing.ImageProcessor", "init_args": {"size": 16}},
                "tokenizer": {"class_path": "collimate.processing.ClipTokenizer", "init_args": {"context_length": 12}},
                "embed_dim": 16,
            },
        },
        "data": {"train": str(train), "batch_size": 8},
        "optimization": {"lr": 1e-3},
        "trainer": {"max_steps": steps, "log_every_n_steps": 1, "accelerator": "cpu", "enable_progress_bar": False},
        "checkpoint": {"every_steps": 2},
    }
    for name, section in sections.items():
        recipe[name] = {**recipe.get(name, {}), **section}
    return recipe


def write_recipe(path: Path, recipe: dict) -> Path:
    path.write_text(yaml.safe_dump(recipe))
    return path


def losses(output: Path) -> dict[int, str]:
    """step -> the loss as logged, digit for digit; a later session's lines replace an earlier one's."""
    import csv

    found: dict[int, str] = {}
    logs = sorted((output / "logs").glob("version_*"), key=lambda path: int(path.name.split("_")[1]))
    for log in logs:
        metrics = log / "metrics.csv"
        if metrics.exists():
            with metrics.open() as file:
                # A kill may cut the last line short.
                rows = [row for row in csv.DictReader(file) if row.get("loss") and row.get("step")]
            found |= {int(row["step"]): row["loss"] for row in rows if row["lr"]}
    return found
