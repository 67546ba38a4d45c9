"""Every reader of foreign bytes: whole files to start from, and the way that users' files go through it."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from PIL import Image

from collimate.checkpoints.files import read_pickle, read_safetensors, write_safetensors
from collimate.data.classes import labels_of
from collimate.data.decoding import decode
from collimate.data.opening import open_source
from collimate.data.preparation import Preparation
from collimate.data.referrals import referrals_of
from collimate.data.regions import regions_of
from collimate.data.scene_graphs import scene_graph_of
from collimate.processing import ClipTokenizer, ImageProcessor
from collimate_3d import PointProcessor
from collimate_3d.lidar.processing import SweepProcessor
from collimate_audio import FilterBank
from collimate_medical import ECGProcessor, XRayProcessor
from collimate_medical.wfdb_records import decode_wfdb
from collimate_video import VideoProcessor
from tests.medical import dicom_files
from tests.three_d import lidar_files
from tests.video import films

READERS: dict[str, tuple[Callable[[], bytes], Callable[[bytes], Any]]] = {}
"""name -> (a whole file, what reads it)."""


def reader(name: str, read: Callable[[bytes], Any]) -> Callable:
    def register(whole: Callable[[], bytes]) -> Callable[[], bytes]:
        READERS[name] = cache(whole), read
        return whole

    return register


def sample(modality: str, key: str, make: Callable[[], Any]) -> Callable[[bytes], Any]:
    """A sample whose key holds the bytes, through the modality's own processor, as in evaluation."""
    prepare = cache(lambda: Preparation({modality: make()}))
    return lambda data: prepare()({"__key__": "fuzzed", "__source__": "fuzz", key: data})


def file(name: str, read: Callable[[Path], Any]) -> Callable[[bytes], Any]:
    """A file of this name, alone in a folder."""

    def run(data: bytes) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            path.write_bytes(data)
            return read(path)

    return run


def all_samples(path: Path | str) -> None:
    """Open a source and read what it has, as `collimate data inspect` does."""
    source = open_source(str(path))
    for index in range(min(len(source), 4)):
        source.read(index)


def one_of_many(make: Callable[[Path], Any], name: str, spec: str) -> Callable[[bytes], Any]:
    """A data set in which the file `name` holds the bytes."""

    @cache
    def whole() -> Path:
        folder = Path(tempfile.mkdtemp())
        make(folder / "set")
        return folder / "set"

    def run(data: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / "set"
            shutil.copytree(whole(), root)
            (root / name).write_bytes(data)
            all_samples(spec.format(root))

    return run


# Pictures and texts ---------------------------------------------------------------------------------------------


def picture(extension: str) -> bytes:
    file = io.BytesIO()
    gradient = np.add.outer(np.arange(40), 2 * np.arange(48)).astype(np.uint8)
    Image.fromarray(np.stack([gradient, gradient.T.copy().reshape(40, 48), 255 - gradient], -1)).save(file, extension)
    return file.getvalue()


for kind in ("jpeg", "png", "webp", "gif", "tiff", "bmp"):
    reader(kind, sample("image", kind, lambda: ImageProcessor(32)))(lambda kind=kind: picture(kind))


@reader("caption", sample("text", "txt", lambda: ClipTokenizer(16)))
def caption() -> bytes:
    return "a naïve red ball – 2 of 3".encode()


@reader("captions.json", sample("text", "captions.json", lambda: ClipTokenizer(16)))
def captions() -> bytes:
    return json.dumps(["a red ball", "a small ball"]).encode()


# Sounds and films -----------------------------------------------------------------------------------------------


def tone(form: str) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.sin(np.arange(8000) / 6), 16000, format=form)
    return file.getvalue()


for form in ("flac", "wav", "ogg", "mp3"):
    reader(form, sample("audio", form, lambda: FilterBank(1.0)))(lambda form=form: tone(form))


@reader("mp4", sample("video", "mp4", lambda: VideoProcessor(2, ImageProcessor(32))))
def mp4() -> bytes:
    return films.film()


@reader("m4a", sample("audio", "m4a", lambda: FilterBank(1.0)))
def m4a() -> bytes:
    return films.only_sound()


# X-rays and ECGs ------------------------------------------------------------------------------------------------


@reader("dicom", sample("xray", "dcm", lambda: XRayProcessor(32)))
def dicom() -> bytes:
    return dicom_files.picture(np.arange(40 * 48, dtype=np.uint16).reshape(40, 48))


def leads() -> np.ndarray:
    return (400 * np.sin(np.arange(500)[:, None] / np.arange(5, 17))).astype(np.int16)


NAMES = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")


@reader("dicom waveform", sample("ecg", "ecg.dcm", lambda: ECGProcessor(100.0, 1.0)))
def waveform() -> bytes:
    return dicom_files.waveform(leads(), 100.0, NAMES)


def wfdb_files() -> dict[str, bytes]:
    import wfdb

    with tempfile.TemporaryDirectory() as folder:
        wfdb.wrsamp("r", 100, ["mV"] * 12, list(NAMES), leads() / 1000, fmt=["16"] * 12, write_dir=folder)
        return {path.suffix: path.read_bytes() for path in Path(folder).iterdir()}


@reader("wfdb header", lambda data: decode_wfdb(data, wfdb_files()[".dat"]))
def wfdb_header() -> bytes:
    return wfdb_files()[".hea"]


@reader("wfdb signal", lambda data: decode_wfdb(wfdb_files()[".hea"], data))
def wfdb_signal() -> bytes:
    return wfdb_files()[".dat"]


# Points ---------------------------------------------------------------------------------------------------------


def cloud() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)


def points(key: str) -> Callable[[bytes], Any]:
    return sample("points", key, lambda: PointProcessor(32))


@reader("ply", points("ply"))
def ply() -> bytes:
    from plyfile import PlyData, PlyElement

    file = io.BytesIO()
    rows = np.rec.fromarrays(cloud().T, names="x,y,z")
    PlyData([PlyElement.describe(rows, "vertex")]).write(file)
    return file.getvalue()


@reader("pcd", points("pcd"))
def pcd() -> bytes:
    head = (
        "VERSION 0.7\nFIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nCOUNT 1 1 1\nWIDTH 60\nHEIGHT 1\nPOINTS 60\nDATA binary\n"
    )
    return head.encode() + cloud().tobytes()


@reader("las", points("las"))
def las() -> bytes:
    import laspy

    survey = laspy.LasData(laspy.LasHeader(point_format=2, version="1.2"))
    survey.x, survey.y, survey.z = cloud().T
    file = io.BytesIO()
    survey.write(file)
    return file.getvalue()


@reader("points.npy", points("points.npy"))
def npy() -> bytes:
    file = io.BytesIO()
    np.save(file, cloud())
    return file.getvalue()


@reader("points.npz", points("points.npz"))
def npz() -> bytes:
    file = io.BytesIO()
    np.savez(file, xyz=cloud())
    return file.getvalue()


@reader("sweep.npz", sample("sweep", "sweep.npz", lambda: SweepProcessor(100)))
def sweep() -> bytes:
    return open_source("world-sweeps:test?length=1").read(0)["sweep.npz"]


def of_kitti(name: str) -> None:
    def whole() -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            return (lidar_files.kitti(Path(folder) / "set", 3) / name).read_bytes()

    reader(f"kitti {name}", one_of_many(lambda root: lidar_files.kitti(root, 3), name, "kitti:{}"))(whole)


for name in ("calib/000001.txt", "label_2/000001.txt", "velodyne/000001.bin"):
    of_kitti(name)


# Tables, shards, checkpoints, recipes -----------------------------------------------------------------------------


@reader("csv", file("table.csv", all_samples))
def csv() -> bytes:
    return b'image,caption,label\na.png,"a red, ball",ball\nb.png,"a ""blue"" ring",ring\n'


@reader("jsonl", file("table.jsonl", all_samples))
def jsonl() -> bytes:
    regions = [{"box": [0, 0, 4, 4], "phrase": "a ball"}]
    rows = [{"image": "a.png", "captions": ["a", "b"], "regions": regions}, {"image": "b.png", "caption": "c"}]
    return "\n".join(map(json.dumps, rows)).encode()


@reader("tar", file("shard.tar", all_samples))
def tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, data in (("a.png", picture("png")), ("a.txt", b"a ball"), ("b.txt", b"a ring")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return file.getvalue()


@reader("safetensors", file("w.safetensors", read_safetensors))
def safetensors() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        write_safetensors({"a": torch.arange(6.0), "b": torch.ones(2, 3)}, f"{folder}/w")
        return Path(folder, "w").read_bytes()


@reader("pt", file("w.pt", read_pickle))
def pt() -> bytes:
    file = io.BytesIO()
    torch.save({"a": torch.arange(6.0), "b": torch.ones(2, 3)}, file)
    return file.getvalue()


@reader("scene.npz", sample("scene", "scene.npz", lambda: _scenes()))
def scene() -> bytes:
    file = io.BytesIO()
    np.savez(file, **open_source("world-rooms:test?length=1").read(0)["scene.npz"])
    return file.getvalue()


def _scenes() -> Any:
    from collimate_3d.scenes.processing import SceneProcessor

    return SceneProcessor(["chair", "table"], 8, 32)


def listing(name: str, understood: Callable[[Any], Any]) -> Callable[[bytes], Any]:
    return lambda data: understood(decode(name, data))


@reader("graph.json", listing("graph.json", scene_graph_of))
def graph() -> bytes:
    return json.dumps(open_source("world-rooms:test?length=1").read(0)["graph.json"]).encode()


@reader("referrals.json", listing("referrals.json", referrals_of))
def referrals() -> bytes:
    return json.dumps(open_source("world-rooms:test?length=1").read(0)["referrals.json"]).encode()


@reader("regions.json", listing("regions.json", lambda value: regions_of(value, (64, 64))))
def regions() -> bytes:
    return json.dumps(open_source("world:test?length=1").read(0)["regions.json"]).encode()


@reader("labels.json", listing("labels.json", labels_of))
def labels() -> bytes:
    return json.dumps(["dog", "rain", 3]).encode()
