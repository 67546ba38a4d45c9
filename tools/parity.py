"""Run tests/golden and keep, for each golden set, the largest error: tests/golden/results/<set>.json.

    python -m tools.parity                     # all sets, in one process
    python -m tools.parity tests/golden/test_clip_loss.py

While it runs, whatever the tests hold against the expected numbers is measured: what `GoldenSet.compare` compares, and
what `torch.testing.assert_close` and `pytest.approx` do. Outside of it, nothing is measured.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tools.bench._harness import machine

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "tests" / "golden" / "results"

_recorder: Recorder | None = None


@dataclass
class Record:
    """What was measured of one set."""

    tests: int = 0
    files: set[str] = field(default_factory=set)
    exact: int = 0
    close: int = 0
    error: float = 0.0
    relative: float = 0.0
    share: float = 0.0
    tolerances: set[str] = field(default_factory=set)

    def add(self, got: Tensor, wanted: Tensor, allowed: Tensor | float, tolerance: str) -> None:
        """One comparison of equal shapes. `allowed` is the error that the test allows of each entry."""
        if not wanted.is_floating_point():
            self.exact += 1
            return
        got, wanted = got.detach().double(), wanted.detach().double()
        both = torch.isfinite(wanted) & torch.isfinite(got)
        error = (got - wanted).abs()[both]
        self.close += 1
        self.tolerances.add(tolerance)
        if not error.numel():
            return
        allowed = torch.as_tensor(allowed, dtype=torch.float64).expand(wanted.shape)[both]
        largest = float(error.max())
        self.error = max(self.error, largest)
        if entry := float(wanted[both].abs().max()):
            self.relative = max(self.relative, largest / entry)
        within = torch.where(error == 0, torch.zeros_like(error), error / allowed.clamp_min(1e-300))
        self.share = max(self.share, float(within.max()))

    def as_json(self) -> dict[str, Any]:
        return {
            "tests": self.tests,
            "files": sorted(self.files),
            "comparisons": {"close": self.close, "exact": self.exact},
            "largest error": self.error,
            "largest error over largest entry": self.relative,
            "share of tolerance used": self.share,
            "tolerances": sorted(self.tolerances),
        }


def measured(name: str, got: Any, wanted: Tensor, rule: Mapping[str, Any]) -> None:
    """What golden sets call at each comparison; does nothing unless this module runs the tests.

    Args:
        name: of the set.
        got: what was computed, of the shape of `wanted`.
        rule: the set's tolerance: `rtol` and `atol`, `max_relative`, or `exact`.
    """
    if _recorder is None:
        return
    record = _recorder.records.setdefault(name, Record())
    if rule.get("exact") or not wanted.is_floating_point():
        record.exact += 1
    elif "max_relative" in rule:
        allowed = rule["max_relative"] * float(wanted.abs().max()) if wanted.numel() else 0.0
        record.add(torch.as_tensor(got), wanted, allowed, f"{rule['max_relative']:g} of the largest entry")
    else:
        rtol, atol = rule.get("rtol", 0.0), rule.get("atol", 0.0)
        record.add(torch.as_tensor(got), wanted, atol + rtol * wanted.double().abs(), _tolerance(rtol, atol))


def loaded(name: str) -> None:
    """What golden sets call when one is loaded, so that later comparisons are known to be with it."""
    if _recorder is not None:
        _recorder.load(name)


class Recorder:
    """A pytest plugin: which sets each test uses, how many pass, and what is compared beside `GoldenSet.compare`."""

    def __init__(self) -> None:
        self.records: dict[str, Record] = {}
        self.failed = 0
        self._fixtures: dict[str, set[str]] = {}
        self._setting_up: list[str] = []
        self._sets: dict[str, list[str]] = {}
        self._item: pytest.Item | None = None

    def load(self, name: str) -> None:
        for fixture in filter(None, self._setting_up):
            self._fixtures.setdefault(fixture, set()).add(name)
        if self._item is not None:
            self._now.append(name)

    @property
    def _now(self) -> list[str]:
        """The sets of the running test, the latest last."""
        assert self._item is not None
        return self._sets.setdefault(self._item.nodeid, [])

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any, request: Any) -> Any:
        self._setting_up.append(f"{fixturedef.baseid}::{fixturedef.argname}" if fixturedef.scope != "function" else "")
        try:
            return (yield)
        finally:
            self._setting_up.pop()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        self._item = item
        named = getattr(getattr(item, "module", None), "GOLDEN", None)
        if isinstance(named, str):
            self._now.append(named)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> None:
        """Sets that fixtures of a whole module loaded for an earlier test are this one's too."""
        names = set(getattr(item, "fixturenames", ()))
        for fixture, sets in self._fixtures.items():
            base, _, name = fixture.rpartition("::")
            if name in names and item.nodeid.startswith(base):
                self._now[:0] = [each for each in sorted(sets) if each not in self._now]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed += 1
        if report.when == "call" and report.passed:
            for name in set(self._sets.get(report.nodeid, ())):
                record = self.records.setdefault(name, Record())
                record.tests += 1
                record.files.add(report.nodeid.split("::")[0])

    def compared(self, got: Any, wanted: Any, rtol: float | None, atol: float | None) -> None:
        """A comparison that a test makes by itself: counted for the set that it loaded last."""
        if self._item is None or not self._now:
            return
        with suppress(Exception):  # nested or unlike values: the assertion itself says what it thinks of them
            got, wanted = torch.as_tensor(got), torch.as_tensor(wanted)
            if got.shape == wanted.shape:
                if rtol is None or atol is None:
                    rtol, atol = (1.3e-6, 1e-5) if wanted.dtype == torch.float32 else (1e-7, 1e-7)  # torch's own
                allowed = atol + rtol * wanted.double().abs()
                record = self.records.setdefault(self._now[-1], Record())
                record.add(got, wanted, allowed, _tolerance(rtol, atol))


def _tolerance(rtol: float, atol: float) -> str:
    return " + ".join([*([f"{rtol:g} relative"] if rtol else []), *([f"{atol:g}"] if atol or not rtol else [])])


def _watched(recorder: Recorder) -> Callable[[], None]:
    """Have `assert_close` and `approx` tell the recorder what they compare; returns what undoes it."""
    scalar = type(pytest.approx(1.0))
    close, equal = torch.testing.assert_close, scalar.__eq__

    @wraps(close)
    def assert_close(actual: Any, expected: Any, *args: Any, **options: Any) -> None:
        recorder.compared(actual, expected, options.get("rtol"), options.get("atol"))
        close(actual, expected, *args, **options)

    def approx(self: Any, actual: Any) -> bool:
        with suppress(Exception):
            recorder.compared(float(actual), float(self.expected), 0.0, float(self.tolerance))
        return equal(self, actual)

    torch.testing.assert_close = assert_close
    scalar.__eq__ = approx

    def undo() -> None:
        torch.testing.assert_close = close
        scalar.__eq__ = equal

    return undo


def main(arguments: list[str]) -> int:
    """Run the tests in this process; results are written if all pass."""
    global _recorder
    _recorder = Recorder()
    undo = _watched(_recorder)
    try:
        status = pytest.main(["-n", "0", "-q", *(arguments or ["tests/golden"])], plugins=[_recorder])
    finally:
        undo()
    if status != 0 or _recorder.failed:
        return int(status) or 1
    RESULTS.mkdir(exist_ok=True)
    about = {"commit": commit(), "machine": machine()}
    for name, record in sorted(_recorder.records.items()):
        if record.tests and not _only_parts(name, _recorder.records):
            found = json.dumps({"set": name, **about, **record.as_json()}, indent=1)
            (RESULTS / f"{name.replace('/', '-')}.json").write_text(found + "\n", encoding="utf-8")
    return 0


def _only_parts(name: str, records: Mapping[str, Record]) -> bool:
    """Whether a set is a folder of sets, which are compared each by itself."""
    compared = records[name].close + records[name].exact
    return not compared and any(other.startswith(f"{name}/") for other in records)


def commit() -> str:
    """The commit that the checkout stands at."""
    return subprocess.run(
        ["git", "rev-parse", "--short=10", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()


if __name__ == "__main__":
    from tools import parity  # the module that the tests import, of which this one is a copy

    raise SystemExit(parity.main(sys.argv[1:]))
