"""DICOM files to training tensors of 224 pixels, against pydicom, numpy and Pillow as one would write it.

    uv run python -m tools.bench.dicom

Both apply modality LUT, VOI LUT or window and MONOCHROME1, bring the picture to 8 bits, and resize it with Pillow. Of
JPEG 2000 ours decodes a quarter of each side, which the other way does not offer; "apart" says what that costs.
Time: medians of interleaved passes over copies of a file in the page cache, in this process or in that many workers of
a DataLoader each, whose start counts for both. Memory: growth of the peak of a fresh process, of the largest picture.
"apart" is the largest difference of two pixels out of 255.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pydicom import Dataset, FileMetaDataset, dcmread
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut
from pydicom.uid import UID, ExplicitVRLittleEndian, JPEG2000Lossless, generate_uid
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as Files

from collimate_medical import XRayProcessor
from tools.bench import _harness

SIZE, BITS = 224, 12
LARGE = 5000  # rows from which memory is measured
SYNTAXES = {"none": ExplicitVRLittleEndian, "JPEG 2000": JPEG2000Lossless}
OURS, PLAIN = "collimate", "pydicom, numpy, Pillow"
_processor = XRayProcessor(SIZE)


def write_file(path: Path, height: int, width: int, compression: str) -> None:
    """A chest-like picture of 12 bits, smooth with noise, with a window."""
    rng = np.random.default_rng(0)
    rows, columns = np.linspace(-3, 3, height)[:, None], np.linspace(-3, 3, width)
    smooth = 2048 + 1200 * np.cos(rows) * np.cos(columns)
    noise = rng.normal(0, 12, (512, 512))
    noise = np.tile(noise, (height // 512 + 1, width // 512 + 1))[:height, :width]
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = UID("1.2.840.10008.5.1.4.1.1.1.1"), generate_uid()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = height, width, 1
    dataset.PhotometricInterpretation, dataset.PixelRepresentation = "MONOCHROME1", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, BITS, BITS - 1
    dataset.WindowCenter, dataset.WindowWidth = 2048, 3500
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, 0
    dataset.PixelData = (smooth + noise).clip(0, 2**BITS - 1).astype(np.uint16).tobytes()
    if SYNTAXES[compression] != ExplicitVRLittleEndian:
        dataset.compress(SYNTAXES[compression])
    dataset.save_as(path, enforce_file_format=True)


def ours(path: str) -> Tensor:
    """By the processor of the package."""
    return _processor(path)


def plain(path: str) -> Tensor:
    """As the manuals of pydicom and Pillow have it."""
    dataset = dcmread(path)
    pixels = apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        pixels = pixels.max() - pixels
    pixels = (pixels - pixels.min()) / (pixels.max() - pixels.min())
    picture = Image.fromarray((pixels * 255).round().astype(np.uint8))
    small = np.array(picture.resize((SIZE, SIZE), Image.Resampling.BICUBIC))
    return torch.from_numpy(small).expand(3, -1, -1)


class _Paths(Files[Tensor]):
    def __init__(self, paths: list[str], read: Callable[[str], Tensor]) -> None:
        self.paths, self.read = paths, read

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        return self.read(self.paths[index])


def compare(height: int, width: int, compression: str, workers: int, files: int, repeats: int) -> dict:
    """Time of both, memory of both in one process, and how far they are apart."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [f"{folder}/{number}.dcm" for number in range(files)]
        write_file(Path(paths[0]), height, width, compression)
        for path in paths[1:]:
            shutil.copy(paths[0], path)

        def read(how: Callable[[str], Tensor]) -> None:
            for _ in DataLoader(_Paths(paths, how), batch_size=4, num_workers=workers):
                pass

        taken = _harness.interleaved({OURS: lambda: read(ours), PLAIN: lambda: read(plain)}, repeats)
        apart = (ours(paths[0]).int() - plain(paths[0]).int()).abs().max()
    row = {
        "picture": f"{width} x {height}",
        "compression": compression,
        "workers": workers,
        f"{OURS} ms": 1000 * taken[OURS] / files,
        f"{PLAIN} ms": 1000 * taken[PLAIN] / files,
        "times as fast": taken[PLAIN] / taken[OURS],
        "apart": int(apart),
    }
    if height >= LARGE:
        for name in (OURS, PLAIN):
            arguments = ("--measure", name, str(height), str(width), compression)
            row[f"{name} MiB"] = _harness.extra_peak_memory("tools.bench.dicom", *arguments) / 2**20
    return row


def measure(whose: str, height: int, width: int, compression: str) -> int:
    """Bytes by which the peak grows as one file is read."""
    how = ours if whose == OURS else plain
    with tempfile.TemporaryDirectory() as folder:
        small, large = Path(folder) / "small.dcm", Path(folder) / "large.dcm"
        write_file(small, 64, 64, compression)
        how(str(small))  # libraries load before the measurement
        write_file(large, height, width, compression)
        return _harness.peak_growth(lambda: how(str(large)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        whose, height, width, compression = options.measure
        print(measure(whose, int(height), int(width), compression))
        return
    cases = [
        (2500, 2048, "none", 0, 4),
        (2500, 2048, "none", 2, 8),
        (5000, 4000, "none", 0, 2),
        (2500, 2048, "JPEG 2000", 0, 2),
    ]
    rows = [compare(*case, options.repeats) for case in cases]
    _harness.report("dicom", rows, size=SIZE, bits=BITS, repeats=options.repeats)


if __name__ == "__main__":
    main()
