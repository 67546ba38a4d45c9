"""What is installed, which devices and optional parts work, and what to do about the rest."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distributions, entry_points, version

from packaging.requirements import Requirement

from collimate.app import installed_apps


def doctor() -> None:
    """Check this machine: packages, devices, optional parts, disk and shared memory, one small training step."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, title="collimate doctor", title_justify="left")
    for column in ("", "what", "found", "what to do"):
        table.add_column(column, overflow="fold")
    failed = False
    for check in (_python, _packages, _apps, _devices, _step, _formats, _optional, _room):
        for good, *row in check():
            mark = {True: "[green]ok[/green]", None: "[yellow]-[/yellow]", False: "[red]no[/red]"}[good]
            failed |= good is False
            table.add_row(mark, *(escape(told) for told in row))
    Console().print(table)
    if failed:
        raise SystemExit(1)


Row = tuple[bool | None, str, str, str]


def _python() -> Iterator[Row]:
    good = sys.version_info >= (3, 11)
    yield good, "Python", sys.version.split()[0], "" if good else "Collimate needs Python 3.11 or newer"


def _packages() -> Iterator[Row]:
    for package in _collimate():
        name = package.metadata["Name"]
        wrong = [line for wanted in _requirements(package) if (line := _missing(wanted))]
        yield not wrong, name, package.version if not wrong else "; ".join(wrong), "" if not wrong else _INSTALL
    yield _attempt("torchvision operators", lambda: importlib.import_module("torchvision").__version__, _BUILDS)


def _collimate() -> list[Distribution]:
    """The installed packages of Collimate, by name."""
    found = {package.metadata["Name"]: package for package in distributions()}
    return [
        found[name] for name in sorted(found) if name.split("-")[0] == "collimate" and name != "collimate-workspace"
    ]


def _requirements(package: Distribution, extra: str = "") -> list[Requirement]:
    """What a package asks for on this machine; with `extra`, what that extra asks for beside it."""
    wanted = [Requirement(line) for line in package.requires or ()]
    plain = [line for line in wanted if line.marker is None or line.marker.evaluate({"extra": ""})]
    if not extra:
        return plain
    return [line for line in wanted if line not in plain and line.marker and line.marker.evaluate({"extra": extra})]


def _missing(wanted: Requirement) -> str:
    """What is wrong with an installed requirement, or nothing."""
    try:
        found = version(wanted.name)
    except PackageNotFoundError:
        return f"{wanted.name} is missing"
    allowed = wanted.specifier.contains(found, prereleases=True)
    return "" if allowed else f"{wanted.name} {found} is not {wanted.specifier}"


_INSTALL = "install again with `uv sync`, or `pip install` with the name of the package"
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


def _formats() -> Iterator[Row]:
    for entry in sorted(entry_points(group="collimate.checks"), key=lambda entry: entry.name):
        yield _attempt(entry.name, lambda entry=entry: entry.load()(), "install the package again")


def _optional() -> Iterator[Row]:
    for package in _collimate():
        for extra in package.metadata.get_all("Provides-Extra") or ():
            name = f"{package.metadata['Name']}[{extra}]"
            wrong = [line for wanted in _requirements(package, extra) if (line := _missing(wanted))]
            found = "; ".join(wrong) or ", ".join(wanted.name for wanted in _requirements(package, extra))
            yield (None if wrong else True), name, found, f"pip install '{name}' if you need it" if wrong else ""


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
