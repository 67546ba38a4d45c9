"""KITTI's object benchmark (Geiger et al. 2012): its files, and a folder of them as a source of samples.

velodyne/000000.bin   calib/000000.txt   label_2/000000.txt   image_2/000000.png   ImageSets/train.txt
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from collimate.data.decoding import IMAGES, Undecodable
from collimate.data.source import CorruptSample, Sample, Source
from collimate_3d.lidar.calibration import CALIBRATION, Calibration
from collimate_3d.lidar.objects import OBJECTS, Objects
from collimate_3d.lidar.subsets import label_subset
from collimate_3d.lidar.sweep import SWEEP, Sweep, encode_sweep, read_points

IMAGE_SIZE = (375, 1242)
"""Height and width of most pictures."""

COLUMNS = 15  # of a row of a label file; a detection has its score as one more


class KittiSource(Source):
    """Frames of the object benchmark: `kitti:/data/kitti?split=train` on the command line.

    A sample has `sweep.npz`, `calib.json`, where they are labelled `objects.json` and, if wanted, the picture.

    Args:
        path: the folder with `velodyne`, or the one above, whose `training` it is.
        split: the frames that `ImageSets/<split>.txt` names; all that there are if None.
        fraction: of the frames, at random: the share of labels to learn from.
        seed: of that draw. Smaller fractions are part of larger ones of the same seed.
        image: whether samples have the picture of the left colour camera.
        front: whether sweeps keep only what that camera sees, which is where objects are labelled; so detectors are
            trained and judged on this benchmark.

    Raises:
        FileNotFoundError: there are no sweeps, or the split has no list.
        ValueError: the fraction is none.
    """

    def __init__(
        self,
        path: str,
        split: str | None = None,
        fraction: float = 1.0,
        seed: int = 0,
        image: bool = False,
        front: bool = False,
    ) -> None:
        self.folder = _data_folder(Path(path))
        frames = _listed(self.folder, split) if split else [each.stem for each in self.folder.glob("velodyne/*.bin")]
        if not frames:
            raise FileNotFoundError(f"There is no .bin file in {self.folder / 'velodyne'}.")
        frames = sorted(frames)
        self.frames = [frames[place] for place in label_subset(len(frames), fraction, seed)]
        self.name, self.image = f"kitti:{path}" + (f"?split={split}" if split else ""), image
        self.front = front

    def __len__(self) -> int:
        return len(self.frames)

    def read(self, index: int) -> Sample:
        return self._read(index, self._readers())

    def peek(self, index: int, keys: Sequence[str]) -> Sample:
        return self._read(index, {key: read for key, read in self._readers().items() if key in keys})

    def _readers(self) -> dict[str, Callable[[str], Any]]:
        return {SWEEP: self._sweep, CALIBRATION: self._calibration, OBJECTS: self._objects, "json": self._facts}

    def _read(self, index: int, readers: dict[str, Callable[[str], Any]]) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} frames; there is no frame {index}.")
        frame = self.frames[index]
        sample: Sample = {"__key__": frame, "__source__": self.name}
        for key, read in readers.items():
            value = reading(f"{self.name}: {frame}.{key}", partial(read, frame))
            sample |= {} if value is None else {key: value}
        return sample | (self._picture(frame) if self.image and len(readers) > 1 else {})

    def _sweep(self, frame: str) -> bytes:
        data = (self.folder / "velodyne" / f"{frame}.bin").read_bytes()
        sweep = Sweep.checked(read_points(data))
        if self.front:
            sweep = sweep.kept(self.calibration(frame).sees(sweep.xyz, self._size(frame)))
        return encode_sweep(sweep)

    def _size(self, frame: str) -> tuple[int, int]:
        """Height and width of the picture; where it is not there, those of most."""
        for suffix in IMAGES:
            path = self.folder / "image_2" / f"{frame}.{suffix}"
            if path.is_file():
                with Image.open(path) as picture:
                    return picture.height, picture.width
        return IMAGE_SIZE

    def _calibration(self, frame: str) -> dict[str, Any]:
        return self.calibration(frame).to_json()

    def calibration(self, frame: str) -> Calibration:
        """The calibration of a frame."""
        return Calibration.parse((self.folder / "calib" / f"{frame}.txt").read_text())

    def _objects(self, frame: str) -> list[dict[str, Any]] | None:
        path = self.folder / "label_2" / f"{frame}.txt"
        if not path.parent.is_dir():
            return None  # the benchmark's test frames
        return parse_labels(path.read_text(), self.calibration(frame)).to_json()

    def _facts(self, frame: str) -> dict[str, Any]:
        return {"frame": frame, "data": "KITTI object"}

    def _picture(self, frame: str) -> Sample:
        for suffix in IMAGES:
            path = self.folder / "image_2" / f"{frame}.{suffix}"
            if path.is_file():
                return {suffix: path.read_bytes()}
        raise CorruptSample(f"{self.name}: {frame}", "missing file", f"no picture in {self.folder / 'image_2'}")


def parse_labels(text: str, calibration: Calibration) -> Objects:
    """The objects in a label file, or in a file of detections, which has scores.

    DontCare regions have no place in space: their boxes are zeros.

    Raises:
        Undecodable: a row has another number of columns or something in them that is no number; rows with and without
            scores.
    """
    rows = [line.split() for line in text.splitlines() if line.strip()]
    if not rows:
        return Objects.none()
    if any(len(row) not in (COLUMNS, COLUMNS + 1) or len(row) != len(rows[0]) for row in rows):
        counts = sorted({len(row) for row in rows})
        raise Undecodable(
            "damaged labels", f"rows have {counts} columns, expected {COLUMNS}, or {COLUMNS + 1} with scores"
        )
    try:
        numbers = np.array([row[1:] for row in rows], np.float64)
    except ValueError as error:
        raise Undecodable("damaged labels", str(error)) from None
    names = tuple(row[0] for row in rows)
    height, width, length = numbers[:, 7:10].T
    camera = np.concatenate([numbers[:, 10:13], np.stack([length, height, width, numbers[:, 13]], 1)], 1)
    cared = np.array([name != "DontCare" for name in names], bool)
    boxes = np.where(cared[:, None], calibration.boxes_to_lidar(camera), 0)
    try:
        return Objects(
            names,
            boxes,
            scores=numbers[:, 14] if numbers.shape[1] == COLUMNS else None,
            image_boxes=numbers[:, 3:7],
            alphas=numbers[:, 2],
            truncated=numbers[:, 0],
            occluded=numbers[:, 1],
        )
    except ValueError as error:
        raise Undecodable("damaged labels", str(error)) from None


def format_labels(objects: Objects, calibration: Calibration, size: tuple[int, int] | None = None) -> str:
    """Objects as rows of a label file, or of a file of detections that KITTI's own tools read.

    Args:
        size: height and width of the image, to which image boxes that have to be computed are clipped.
    """
    camera = calibration.boxes_to_camera(objects.boxes)
    images = calibration.image_boxes(objects.boxes, size) if objects.image_boxes is None else objects.image_boxes
    seen_at = np.arctan2(camera[:, 0], camera[:, 2])
    alphas = camera[:, 6] - seen_at if objects.alphas is None else objects.alphas
    unknown = np.full(len(objects), -1.0)
    truncated = unknown if objects.truncated is None else objects.truncated
    occluded = unknown if objects.occluded is None else objects.occluded
    rows = []
    for at, name in enumerate(objects.names):
        x, y, z, length, height, width, rotation = camera[at]
        score = [] if objects.scores is None else [objects.scores[at]]
        numbers = [*images[at], height, width, length, x, y, z, rotation, *score]
        first = f"{name} {truncated[at]:.2f} {int(occluded[at])} {alphas[at]:.6f}"
        rows.append(" ".join([first, *(f"{number:.6f}" for number in numbers)]))
    return "".join(f"{row}\n" for row in rows)


def reading(what: str, read: Callable[[], Any]) -> Any:
    """What `read` gives; its errors as those of a corrupt sample with this name."""
    try:
        return read()
    except Undecodable as error:
        raise CorruptSample(what, error.reason, error.detail) from None
    except FileNotFoundError as error:
        raise CorruptSample(what, "missing file", str(error.filename)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise CorruptSample(what, "unreadable file", str(error)) from None


def _data_folder(path: Path) -> Path:
    for folder in (path, path / "training"):
        if (folder / "velodyne").is_dir():
            return folder
    raise FileNotFoundError(
        f"There is no folder velodyne in {path}, nor in {path / 'training'}: name the folder that has it."
    )


def _listed(folder: Path, split: str) -> list[str]:
    places = [each / "ImageSets" / f"{split}.txt" for each in (folder, folder.parent)]
    for place in places:
        if place.is_file():
            return place.read_text().split()
    raise FileNotFoundError(f"There is no list of the split {split!r}: {' or '.join(map(str, places))}.")
