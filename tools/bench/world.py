"""How fast the world makes pictures and whole samples, on one core.

    uv run python -m tools.bench.world

The goal: 500 pictures of 64 x 64 pixels a second. Kinds of work take turns; the figure is the median over turns.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from itertools import product

from collimate_world import Picture, WorldSource
from tools.bench._harness import interleaved, report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=200, help="scenes a turn")
    parser.add_argument("--turns", type=int, default=7)
    options = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

    work = {
        (name, objects, size): make(WorldSource("train", objects, size=size), options.scenes)
        for (name, make), objects, size in product(
            (("scene and picture", pictures), ("whole sample", samples)), ("1", "2-4"), (64, 224)
        )
    }
    seconds = interleaved({str(key): run for key, run in work.items()}, options.turns)
    rows = [
        {"work": name, "objects": objects, "side": size, "per_second": round(options.scenes / seconds[str(key)])}
        for key in work
        for name, objects, size in [key]
    ]
    report("world", rows, **vars(options))


def pictures(source: WorldSource, count: int) -> Callable[[], object]:
    return lambda: [Picture(source.scene(i), source.size).pixels for i in range(count)]


def samples(source: WorldSource, count: int) -> Callable[[], object]:
    return lambda: [source.read(i) for i in range(count)]


if __name__ == "__main__":
    main()
