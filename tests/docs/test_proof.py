"""The proof page says what the results say, and each golden set has one."""

import json
import re
from pathlib import Path

from tools import parity, proof

from .pages import ROOT


def without_commits(text: str) -> str:
    """A result's commit is known only once it is in the history, which the page may precede."""
    return re.sub(r", commit (?:[0-9a-f]{7,}|not yet)\.", ".", text)


def test_it_is_up_to_date():
    page = proof.DOCUMENT.read_text(encoding="utf-8")
    assert without_commits(page) == without_commits(proof.document()), "run `python -m tools.proof`"


def test_every_golden_set_was_measured():
    """A set, or the sets within it."""
    sets = {path.name for path in (ROOT / "tests" / "golden" / "data").iterdir() if path.is_dir()}
    measured = {json.loads(path.read_text())["set"].partition("/")[0] for path in proof.PARITY.glob("*.json")}
    assert not sets - measured, "run `python -m tools.parity`"


def test_no_error_exceeds_its_tolerance():
    for path in proof.PARITY.glob("*.json"):
        assert json.loads(path.read_text())["share of tolerance used"] <= 1, path


def test_a_difference_is_told_as_it_is():
    assert proof._gain([1.0, 2.0, 3.0], [0.0, 1.0, 2.0]) == "**+1.000 (+1.000 to +1.000)**"
    assert proof._gain([1.0, 2.0], [1.5, 1.5]).startswith("+0.000 (")
    assert proof._gain([1.0], None) == "–"


def test_what_is_measured_is_the_largest_error(monkeypatch):
    import torch

    recorder = parity.Recorder()
    monkeypatch.setattr(parity, "_recorder", recorder)
    wanted = torch.tensor([1.0, -2.0])
    parity.measured("toy", wanted + 1e-3, wanted, {"rtol": 0.0, "atol": 1e-2})
    parity.measured("toy", wanted - 5e-3, wanted, {"rtol": 0.0, "atol": 1e-2})
    parity.measured("toy", torch.tensor([1]), torch.tensor([1]), {})
    found = recorder.records["toy"]
    assert abs(found.error - 5e-3) < 1e-6
    assert abs(found.share - 0.5) < 1e-4
    assert (found.close, found.exact) == (2, 1)


def test_nothing_is_measured_otherwise(tmp_path: Path):
    import torch

    assert parity._recorder is None
    parity.measured("toy", torch.ones(1), torch.ones(1), {})
