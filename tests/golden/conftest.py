"""Golden sets: numbers that official implementations computed, with the cases and tolerances that go with them.

A test module names its set in `GOLDEN = "clip_loss"`; a test that asks for `golden_set` gets it, and one that asks for
`case` is run once for each case that the set's config.json lists. `golden(name)` gives any set by name. The sets lie in
`data/`, or in the folder that the environment variable COLLIMATE_GOLDEN names. `python -m tools.parity` runs all of it
and keeps the largest error of each set in `results/`.
"""

import fnmatch
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tools import parity


@dataclass(frozen=True)
class GoldenSet:
    name: str
    folder: Path
    config: dict[str, Any]
    inputs: dict[str, Tensor]
    expected: dict[str, Tensor]

    @property
    def cases(self) -> dict[str, dict[str, Any]]:
        return self.config["cases"]

    def tolerance(self, key: str) -> dict[str, Any]:
        """The first entry of `tolerance` whose pattern matches the name of an expected tensor."""
        for rule in self.config["tolerance"]:
            if fnmatch.fnmatchcase(key, rule["keys"]):
                return rule
        raise KeyError(f"{self.folder}/config.json states no tolerance for {key!r}")

    def compare(self, actual: Mapping[str, Any]) -> None:
        """Hold computed values (tensors, arrays, numbers; named as in expected.safetensors) against the expected ones.

        Every name given must exist in the set; `compare_all` also sees that none was forgotten.
        """
        problems = []
        for key, value in actual.items():
            wanted, rule = self.expected[key], self.tolerance(key)
            if rule.get("compare") is False:
                continue
            got = torch.as_tensor(value).detach()
            if got.shape != wanted.shape:
                problems.append(f"{key}: shape {tuple(got.shape)}, expected {tuple(wanted.shape)}")
                continue
            parity.measured(self.name, got, wanted, rule)
            if problem := _difference(got, wanted, rule):
                problems.append(f"{key}: {problem}")
        assert not problems, f"golden set {self.name}:\n  " + "\n  ".join(problems)

    def compare_all(self, prefix: str, actual: Mapping[str, Any]) -> None:
        """Compare every expected tensor whose name begins with `prefix`; values may be given that the set lacks.

        Args:
            actual: values by the rest of their name.
        """
        rest = [key.removeprefix(prefix) for key in self.expected if key.startswith(prefix)]
        wanted = [key for key in rest if self.tolerance(prefix + key).get("compare") is not False]
        missing = sorted(set(wanted) - set(actual))
        assert wanted, f"golden set {self.name} expects nothing under {prefix!r}"
        assert not missing, f"golden set {self.name}: never computed under {prefix!r}: {missing}"
        self.compare({prefix + key: actual[key] for key in wanted})


def _difference(got: Tensor, wanted: Tensor, rule: Mapping[str, Any]) -> str | None:
    if not wanted.is_floating_point() or rule.get("exact"):
        differing = int((got != wanted).sum())
        return f"{differing} of {wanted.numel()} entries differ" if differing else None
    got, wanted = got.double(), wanted.double()
    error = (got - wanted).abs()
    if "max_relative" in rule:
        allowed = rule["max_relative"] * wanted.abs().max().clamp_min(torch.finfo(torch.float64).tiny)
    else:
        allowed = rule.get("atol", 0.0) + rule.get("rtol", 0.0) * wanted.abs()
    if bool((error <= allowed).all()):  # also false for NaN
        return None
    return f"largest error {error.max():.3g} over {wanted.abs().max():.3g}, rule {dict(rule)}"


def load_golden(name: str) -> GoldenSet:
    folder = golden_root() / name
    if not folder.is_dir():
        pytest.skip(f"no golden set at {folder}")
    parity.loaded(name)
    return GoldenSet(
        name=name,
        folder=folder,
        config=json.loads((folder / "config.json").read_text()),
        inputs=_tensors(folder / "inputs.safetensors"),
        expected=_tensors(folder / "expected.safetensors"),
    )


def golden_root() -> Path:
    return Path(os.environ.get("COLLIMATE_GOLDEN") or Path(__file__).parent / "data")


def _tensors(path: Path) -> dict[str, Tensor]:
    return load_file(path) if path.exists() else {}


@pytest.fixture(scope="session")
def golden() -> Callable[[str], GoldenSet]:
    """`golden(name)`: one golden set, or the test skips where that set is absent."""
    return load_golden


@pytest.fixture
def golden_set(request: pytest.FixtureRequest) -> GoldenSet:
    """The set that the test module names in GOLDEN."""
    return load_golden(request.module.GOLDEN)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames and (name := getattr(metafunc.module, "GOLDEN", None)):
        config = golden_root() / name / "config.json"
        cases = json.loads(config.read_text())["cases"] if config.exists() else {}
        metafunc.parametrize("case", list(cases))
