"""What every bench needs: interleaved timing, peak memory of a fresh process, the machine, JSON and a table."""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"


def interleaved(contenders: Mapping[str, Callable[[], Any]], repeats: int, warm_up: int = 1) -> dict[str, float]:
    """Median seconds of each contender; they take turns, so that a slow minute of the machine hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(warm_up + repeats):
        for name, run in contenders.items():
            _synchronize()
            start = time.perf_counter()
            run()
            _synchronize()
            if turn >= warm_up:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def extra_peak_memory(module: str, *arguments: str) -> int:
    """Bytes by which the peak of a fresh process grows over its state before the measured call.

    Runs `python -m module arguments`, which prints what `peak_growth` returns as its last line. There, what is freed is
    given back at once, so that the peak is of what was held at a time.
    """
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True, env=env)
    if done.returncode:
        raise RuntimeError(f"{module} {' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    return int(done.stdout.strip().splitlines()[-1])


def peak_growth(run: Callable[[], Any]) -> int:
    """Bytes by which the peak memory of this process, or of its GPU, grows while `run()` is called once."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    before = resident()
    _reset_peak()
    run()
    return max(0, peak_resident() - before)


def resident() -> int:
    """Bytes of memory this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak_resident() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def _reset_peak() -> None:
    """Start the peak afresh where the kernel allows it; else the peak so far must be lower than what follows."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 <= resident() * 1.2, "peak cannot be reset"


def _synchronize() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def machine() -> dict[str, Any]:
    """The machine and the versions that a result was measured with."""
    torch = sys.modules.get("torch")
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    cuda = torch is not None and torch.cuda.is_initialized()
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if cuda else None,
        "threads": torch.get_num_threads() if torch is not None else None,
        "load_average": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("torch", "open_clip_torch")},
        "date": datetime.now(UTC).date().isoformat(),
    }


def report(name: str, rows: Sequence[Mapping[str, Any]], **settings: Any) -> Path:
    """Print the rows as a table and write them, with settings and machine, to results/<name>.json."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = Table(*columns, title=name)
    for row in rows:
        table.add_row(*(_show(row.get(column)) for column in columns))
    Console(width=160).print(table)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), "settings": settings, "rows": rows}, indent=1) + "\n")
    return path


def _show(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
