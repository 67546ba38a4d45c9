"""Work on a CPU that is cut by its parts, not inside each operation."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import torch

T = TypeVar("T")


def for_each(work: Callable[[T], object], parts: Iterable[T], device: torch.device) -> None:
    """Call `work` on every part, as many at a time as torch has threads; in order and one by one on a GPU.

    For many short operations on parts that fit a core's cache. Torch lets all threads share each operation and wait for
    each other after it; where other processes want the cores too, such as data workers, the waiting takes far longer
    than the work. Here each part's operations run in one thread, and threads wait once, at the end.
    """
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    if threads == 1:
        for part in parts:
            work(part)
        return
    begin = partial(torch.set_num_threads, 1)  # of the thread that calls it
    run = partial(_run, work, torch.is_inference_mode_enabled())
    try:
        with ThreadPoolExecutor(threads, "collimate", begin) as pool:
            for _ in pool.map(run, parts):
                pass
    finally:
        torch.set_num_threads(threads)  # of threads that begin later


def _run(work: Callable[[T], object], inference: bool, part: T) -> None:
    with torch.inference_mode(inference), torch.no_grad():  # a new thread knows nothing of the caller's modes
        work(part)
