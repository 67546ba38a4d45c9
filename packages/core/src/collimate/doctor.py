"""What is installed, which devices and optional parts work, and what to do about the rest."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version

from collimate.app import installed_apps

OPTIONAL = {
    "transformers": ("text models and checkpoints of Hugging Face", "collimate[huggingface]"),
    "datasets": ("Hugging Face datasets as a source", "collimate[huggingface]"),
    "peft": ("LoRA", "collimate[lora]"),
    "nltk": ("noun phrases of captions", "collimate[phrases]"),
    "onnxruntime": ("export to ONNX, checked by running it", "collimate[onnx]"),
    "wandb": ("logging to Weights & Biases", "collimate[wandb]"),
}
"""Import name -> what it is for, and the extra that installs it."""


def doctor() -> None:
    """Check this machine: packages, devices, optional parts, disk and shared memory, one small training step."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, title="collimate doctor", title_justify="left")
    for column in ("", "what", "found", "what to do"):
        table.add_column(column, overflow="fold")
    failed = False
    for check in (_python, _packages, _apps, _devices, _step, _optional, _room):
        for good, what, found, remedy in check():
            mark = {True: "[green]ok[/green]", None: "[yellow]-[/yellow]", False: "[red]no[/red]"}[good]
            failed |= good is False
            table.add_row(mark, what, found, remedy)
    Console().print(table)
    if failed:
        raise SystemExit(1)


Row = tuple[bool | None, str, str, str]


def _python() -> Iterator[Row]:
    good = sys.version_info >= (3, 11)
    yield good, "Python", sys.version.split()[0], "" if good else "Collimate needs Python 3.11 or newer"


def _packages() -> Iterator[Row]:
    for name in ("torch", "torchvision", "lightning", "timm", "open_clip_torch", "webdataset", "jsonargparse"):
        try:
            yield True, name, version(name), ""
        except PackageNotFoundError:
            yield False, name, "missing", "install again with `uv sync`, or `pip install collimate`"
    yield _attempt("torchvision operators", lambda: importlib.import_module("torchvision").__version__, _BUILDS)


_BUILDS = "torch and torchvision come from different builds: install both from the same index (uv sync does)"


def _apps() -> Iterator[Row]:
    for app in installed_apps().values():
        yield True, f"app {app.name}", f"{len(app.recipes())} recipes", ""


def _devices() -> Iterator[Row]:
    import torch

    yield True, "CPU", f"{torch.get_num_threads()} threads of {os.cpu_count()} cores", ""
    if not torch.cuda.is_available():
        yield None, "CUDA", "no device", "training runs on the CPU; with a GPU, check the driver with nvidia-smi"
        return
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16: use precision 16-mixed"
        yield True, f"CUDA {index}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, {bf16}", ""
    yield _attempt("Triton", lambda: version("triton"), "the fused loss kernels fall back to torch")


def _step() -> Iterator[Row]:
    def one_step() -> str:
        import torch

        from collimate.losses import clip_loss

        image, text = (torch.randn(64, 32, requires_grad=True) for _ in range(2))
        start = time.perf_counter()
        clip_loss(image, text, 10.0).backward()
        return f"{1e3 * (time.perf_counter() - start):.0f} ms"

    yield _attempt("a small loss, forward and backward", one_step, "report this with the traceback")


def _optional() -> Iterator[Row]:
    for name, (purpose, extra) in OPTIONAL.items():
        try:
            yield True, f"{name} ({purpose})", version(name), ""
        except PackageNotFoundError:
            yield None, f"{name} ({purpose})", "not installed", f"pip install '{extra}' if you need it"


def _room() -> Iterator[Row]:
    free = shutil.disk_usage(".").free / 2**30
    yield free > 5, "disk here", f"{free:.0f} GiB free", "" if free > 5 else "checkpoints may not fit"
    if os.path.isdir("/dev/shm"):
        shared = shutil.disk_usage("/dev/shm").total / 2**30
        remedy = "" if shared >= 1 else "loader workers need it: in Docker, run with --shm-size=8g"
        yield shared >= 1 or None, "shared memory", f"{shared:.1f} GiB", remedy
    yield _attempt("temporary files", tempfile.gettempdir, "set TMPDIR")


def _attempt(what: str, action: Callable[[], object], remedy: str) -> Row:
    try:
        return True, what, str(action()), ""
    except Exception as error:  # whatever fails is what the doctor is here to tell
        return False, what, f"{type(error).__name__}: {error}", remedy
