"""Small stand-ins for the files that READMEs and pages speak of: pictures, sounds, videos, scans and trained models."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tests.end_to_end.recipes import write_pictures

from .pages import PAGES, ROOT, blocks


def write_inputs(folder: Path) -> Path:
    """All of them; the folder."""
    (folder / "configs").symlink_to(ROOT / "configs")
    _pictures(folder)
    _sounds(folder)
    _videos(folder)
    _medical(folder)
    _points(folder)
    _models(folder)
    for block in (block for page in PAGES for block in blocks(page)):
        if block.title is not None:
            (folder / block.title).write_text(block.code)
    return folder


def _pictures(folder: Path) -> None:
    table = write_pictures(folder / "photos", count=12)
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    with (folder / "captions.jsonl").open("w") as file:
        for row in rows:
            file.write(json.dumps({"image": f"photos/{row['image']}", "caption": row["caption"]}) + "\n")
    for name in ("street.jpg", "kitchen.jpg"):
        Image.new("RGB", (80, 60), "grey").save(folder / name)
    coco = folder / "coco"
    (coco / "val2017").mkdir(parents=True)
    pictures = [{"id": place, "file_name": f"{place}.jpg"} for place in range(4)]
    for each in pictures:
        shutil.copy(folder / "photos" / f"{each['id']}.jpg", coco / "val2017" / each["file_name"])
    captions = [{"image_id": each["id"], "caption": f"picture {each['id']}"} for each in pictures for _ in range(2)]
    (coco / "captions_val2017.json").write_text(json.dumps({"images": pictures, "annotations": captions}))
    clothing = folder / "data" / "clothing10"
    clothing.mkdir(parents=True)
    (clothing / "classes.json").write_text(json.dumps({"classes": ["hat"], "prompt_names": ["hat"]}))
    _write_csv(clothing / "manifest.csv", [{"file": "a.jpg", "label": "hat", "split": "train"}])
    images = folder / "data" / "coco_captions" / "images"
    images.mkdir(parents=True)
    shutil.copy(folder / "photos" / "0.jpg", images / "000000403353.jpg")


def _sounds(folder: Path) -> None:
    import soundfile

    time = np.arange(16_000) / 16_000
    wave = 0.3 * np.sin(2 * np.pi * 440 * time)
    for name in ("dog.flac", "rain.wav", "clip.flac", "clotho/audio/a.wav", "clotho/audio/b.wav"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / name, wave, 16_000)
    rows = [{"file_name": f"{name}.wav", "caption_1": "a tone", "caption_2": "a beep"} for name in "ab"]
    _write_csv(folder / "clotho" / "clotho_captions.csv", rows)
    _write_csv(folder / "my.csv", [{"file": "dog.flac", "label": "dog"}, {"file": "rain.wav", "label": "rain"}])


def _videos(folder: Path) -> None:
    from tests.video.films import film

    (folder / "clips").mkdir()
    (folder / "clip.mp4").write_bytes(film(40, sound=(0.0, 4.0)))
    (folder / "clips" / "a.mp4").write_bytes(film(20))
    (folder / "clips" / "a.txt").write_text("numbers in black and white\nstripes\n")


def _medical(folder: Path) -> None:
    from tests.medical.dicom_files import picture

    pixels = np.random.default_rng(0).integers(0, 4096, (64, 48), dtype=np.uint16)
    (folder / "chest.dcm").write_bytes(picture(pixels))
    (folder / "hospital").mkdir()
    (folder / "hospital" / "1.dcm").write_bytes(picture(pixels))
    _write_csv(folder / "hospital" / "studies.csv", [{"patient": "p1", "dicom": "1.dcm", "report": "No effusion."}])
    _write_record(folder / "records" / "00001_hr", 500, 5000)
    (folder / "records" / "00001_hr.txt").write_text("Sinus rhythm.")


def _write_record(path: Path, rate: int, samples: int) -> None:
    """A WFDB record of twelve leads in 16 bits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    leads = ("I", "II", "III", "AVR", "AVL", "AVF", "V1", "V2", "V3", "V4", "V5", "V6")
    counts = (300 * np.random.default_rng(0).standard_normal((samples, len(leads)))).astype("<i2")
    path.with_suffix(".dat").write_bytes(counts.tobytes())
    lines = [f"{path.name} {len(leads)} {rate} {samples}"]
    for place, lead in enumerate(leads):
        check = int(counts[:, place].sum()) & 0xFFFF
        lines.append(f"{path.name}.dat 16 1000/mV 16 0 {counts[0, place]} {check} 0 {lead}")
    path.with_suffix(".hea").write_text("\n".join(lines) + "\n")


def _points(folder: Path) -> None:
    from tests.three_d.lidar_files import kitti

    kitti(folder / "KITTI", count=4)
    for name in ("room.ply", "objects/mug/a.ply", "objects/bowl/b.ply"):
        _write_ply(folder / name, np.random.default_rng(0).normal(size=(1500, 3)))


def _write_ply(path: Path, xyz: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    axes = "".join(f"property float {axis}\n" for axis in "xyz")
    header = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(xyz)}\n{axes}end_header\n"
    path.write_bytes(header.encode() + xyz.astype("<f4").tobytes())


def _models(folder: Path) -> None:
    """A CLIP and a CLOC of random weights, and a checkpoint of BEATs in the published form."""
    from safetensors.torch import load_file

    from collimate.checkpoints import save
    from collimate.encoders import OpenClipTextEncoder, TimmImageEncoder
    from collimate.processing import ClipTokenizer, ImageProcessor
    from collimate_vision_language import CLIP, CLOC

    def parts() -> dict:
        channels = {"channels": [16, 24, 32, 32], "stem_width": 8, "output_stride": 16}
        return {
            "image_encoder": TimmImageEncoder("resnet10t", model_args=channels),
            "text_encoder": OpenClipTextEncoder(context_length=16, width=32, heads=2, layers=1),
            "image_processor": ImageProcessor(64),
            "tokenizer": ClipTokenizer(16),
            "embed_dim": 32,
        }

    torch.manual_seed(0)
    save(CLIP(**parts()), folder / "folder")
    for name in ("runs/clip_demo/model", "runs/clip_excerpts/model"):
        shutil.copytree(folder / "folder", folder / name)
    save(CLOC(**parts()), folder / "runs" / "cloc" / "model")
    golden = ROOT / "tests" / "golden" / "data" / "beats_backbone"
    config = json.loads((golden / "config.json").read_text())
    weights = load_file(golden / "weights.safetensors")
    count = weights["predictor.weight"].shape[0] if "predictor.weight" in weights else 0
    labels = {place: f"/m/{place}" for place in range(count)}
    checkpoint = {"cfg": config, "model": weights, "label_dict": labels}
    torch.save(checkpoint, folder / "BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2.pt")


def _write_csv(path: Path, rows: list[dict]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
