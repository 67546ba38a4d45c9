"""Write docs/proof.md from what was measured: parity, claims and benchmarks, each with its date and commit.

    python -m tools.proof

It measures nothing: the numbers stand in `tests/golden/results` (`python -m tools.parity`), `tests/claims/results`
(`pytest -m slow tests/claims`) and `tools/bench/results` (`python -m tools.bench.<name>`).
"""

from __future__ import annotations

import ast
import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "proof.md"
PARITY = ROOT / "tests" / "golden" / "results"
CLAIMS = ROOT / "tests" / "claims" / "results"
BENCHES = ROOT / "tools" / "bench" / "results"

HEAD = """# Proof

Three kinds of evidence, each from files in the repository that a command writes anew. This page is written from those
files by `python -m tools.proof`, and a test sees that it is up to date.

| what | holds | command | numbers in |
|---|---|---|---|
| [parity](#parity) | numbers equal those of official code | `python -m tools.parity` | `tests/golden/results` |
| [claims](#claims) | what papers claim, at small scale | `pytest -m slow -n 0 tests/claims` | `tests/claims/results` |
| [benchmarks](#benchmarks) | speed, memory beside other code | `python -m tools.bench.NAME` | `tools/bench/results` |
"""

PARITY_HEAD = """## Parity

Golden sets are inputs and outputs of official implementations (or, where a paper published none, of the equation in
float64). *Largest error* is the largest absolute difference of any entry; *of the tolerance* is the largest share that
any entry takes of what its test allows; *exact* counts comparisons in which nothing may differ. Sets without either are
compared as texts or numbers that must be equal.
"""

CLAIMS_HEAD = """## Claims

Each experiment trains every arm with the same seeds, data and first weights. Values are means over seeds with 95 %
t-intervals; the second table has paired differences, seed by seed, from the first arm and from the arm before.
**Bold** intervals do not contain 0; nothing corrects for their number. Data and models are small: what shows here holds
at this scale.
"""

BENCH_HEAD = """## Benchmarks

Contenders take turns in one process. Read ratios and memory; absolute times are those of the machine that is named, and
under load (*load*) even ratios are rough.
"""


def document() -> str:
    """The whole page."""
    return "\n".join([HEAD, *_parity(), *_claims(), *_benches()]).rstrip() + "\n"


# Parity ---------------------------------------------------------------------------------------------------------


def _parity() -> Iterator[str]:
    yield PARITY_HEAD
    rows = _read(PARITY)
    tests = {test for row in rows.values() for test in row["files"]}
    close = sum(row["comparisons"]["close"] for row in rows.values())
    yield f"{len(rows)} sets in {len(tests)} test files, {close} comparisons within a tolerance.\n"
    yield "| set | beside what | tests | largest error | of the tolerance | exact | date | commit |"
    yield "|---|---|---|---|---|---|---|---|"
    for row in sorted(rows.values(), key=lambda row: row["set"]):
        compared = row["comparisons"]["close"] > 0
        error = f"{row['largest error']:.1e}" if compared else "–"
        share = f"{row['share of tolerance used']:.1%}" if compared else "–"
        about = " ".join(_first_line(ROOT / file) for file in row["files"])
        exact, date = row["comparisons"]["exact"], row["machine"]["date"]
        yield f"| `{row['set']}` | {about} | {row['tests']} | {error} | {share} | {exact} | {date} | {row['commit']} |"
    yield ""


# Claims ---------------------------------------------------------------------------------------------------------


def _claims() -> Iterator[str]:
    yield CLAIMS_HEAD
    for name, result in _read(CLAIMS).items():
        yield from _claim(name, result)


def _claim(name: str, result: Mapping[str, Any]) -> Iterator[str]:
    yield f"### {name}\n"
    yield _claimed(name)
    about = f"{_machine(result['machine'])}, commit {_commit(CLAIMS / f'{name}.json')}"
    yield f"\nSeeds {', '.join(map(str, result['seeds']))}; {about}.\n"
    yield from claim_tables(result["values"])


def claim_tables(arms: Mapping[str, Mapping[str, Sequence[float]]]) -> Iterator[str]:
    """Lines of two tables: the means of every arm, and paired differences, with intervals.

    Args:
        arms: arm -> metric -> the numbers of all seeds.
    """
    metrics = list(dict.fromkeys(metric for found in arms.values() for metric in found))
    yield _row(["arm", *metrics])
    yield "|---" * (1 + len(metrics)) + "|"
    for arm, found in arms.items():
        yield _row([arm, *(_mean(found[metric]) if metric in found else "–" for metric in metrics)])
    yield ""
    pairs = _pairs(list(arms))
    if pairs:
        yield _row(["paired difference", *metrics])
        yield "|---" * (1 + len(metrics)) + "|"
    for better, worse in pairs:
        cells = [_gain(arms[better].get(metric), arms[worse].get(metric)) for metric in metrics]
        yield _row([f"{better} − {worse}", *cells])
    yield ""


def _pairs(arms: Sequence[str]) -> list[tuple[str, str]]:
    """Every arm with the first, and with the one before it."""
    return list(dict.fromkeys([(arm, arms[0]) for arm in arms[1:]] + [(b, a) for a, b in pairwise(arms)]))


def _mean(values: Sequence[float]) -> str:
    low, high = _interval(values)
    return f"{np.mean(values):.3f} ({low:.3f} to {high:.3f})"


def _gain(better: Sequence[float] | None, worse: Sequence[float] | None) -> str:
    if better is None or worse is None or len(better) != len(worse):
        return "–"
    gains = np.subtract(better, worse)
    low, high = _interval(gains)
    text = f"{gains.mean():+.3f} ({low:+.3f} to {high:+.3f})"
    return f"**{text}**" if low > 0 or high < 0 else text


def _interval(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """The 95 % t-interval of the mean."""
    found = np.asarray(values, dtype=float)
    if len(found) < 2 or np.ptp(found) == 0:
        return float(found[0]), float(found[0])
    low, high = stats.t.interval(0.95, len(found) - 1, loc=found.mean(), scale=stats.sem(found))
    return float(low), float(high)


def _claimed(name: str) -> str:
    """What the experiment says of itself: the docstring of the test that writes its result."""
    for path in sorted(CLAIMS.parent.glob("*.py")):
        calls = (node for node in ast.walk(_tree(path)) if isinstance(node, ast.Call) and node.args)
        if any(getattr(call.func, "id", "") == "compare" and _text(call.args[0]) == name for call in calls):
            return _markdown(ast.get_docstring(_tree(path)) or "")
    return ""


# Benchmarks -----------------------------------------------------------------------------------------------------


def _benches() -> Iterator[str]:
    yield BENCH_HEAD
    for name, result in _read(BENCHES).items():
        rows = result["rows"]
        columns = list(dict.fromkeys(key for row in rows for key in row))
        yield f"### {name.replace('_', ' ')}\n"
        source = BENCHES.parent / f"{name}.py"
        if source.is_file():
            yield _markdown((ast.get_docstring(_tree(source)) or "").partition("\n\n")[0]) + "\n"
        settings = ", ".join(f"{key} {value}" for key, value in result["settings"].items())
        about = f"{_machine(result['machine'])}, commit {_commit(BENCHES / f'{name}.json')}."
        yield f"{settings}; {about}\n" if settings else f"{about}\n"
        yield _row(columns)
        yield "|---" * len(columns) + "|"
        for row in rows:
            yield _row([_show(row.get(column)) for column in columns])
        yield ""


# What all of them need ------------------------------------------------------------------------------------------


def _read(folder: Path) -> dict[str, dict[str, Any]]:
    """Name -> content of every result, by name."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}


def _machine(machine: Mapping[str, Any]) -> str:
    processor = machine.get("gpu") or f"{machine.get('cores')} cores of {machine.get('cpu')}"
    load = machine.get("load_average")
    return f"{machine['date']}, {processor}, torch {machine['torch']}" + ("" if load is None else f", load {load:g}")


def _commit(path: Path) -> str:
    """The commit that last changed a file."""
    found = subprocess.run(
        ["git", "log", "-1", "--format=%h", "--abbrev=10", "--", str(path)], cwd=ROOT, capture_output=True, text=True
    )
    return found.stdout.strip() or "not yet"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _show(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _first_line(path: Path) -> str:
    return _markdown((ast.get_docstring(_tree(path)) or path.stem).partition("\n\n")[0].replace("\n", " "))


def _markdown(docstring: str) -> str:
    from tools.pages.docstrings import as_markdown

    return as_markdown(docstring)


def _text(node: ast.expr) -> str | None:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    DOCUMENT.write_text(document(), encoding="utf-8")
