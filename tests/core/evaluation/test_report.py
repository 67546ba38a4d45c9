"""Reports: whole in one file, escaped, and beside them JSON that any reader takes."""

import json
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image

from collimate.evaluation import Report, Result, figures
from collimate.evaluation.result import number
from collimate.evaluation.retrieval import evaluate_retrieval
from collimate.evaluation.zero_shot import evaluate_zero_shot

from .toys import ColourMethod, ColourPictures

HOSTILE = "<script>alert('&')</script>"


class Tags(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.found, self.addresses, self.open = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.found.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href", "xlink:href")]
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.addresses += [value for name, value in attributes if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_all_text_is_escaped():
    report = Report(HOSTILE, HOSTILE)
    report.add_heading(HOSTILE)
    report.add_text(HOSTILE)
    report.add_facts({HOSTILE: {HOSTILE: HOSTILE}})
    report.add_table([HOSTILE], [[HOSTILE]], HOSTILE)
    report.add_images([(Image.new("RGB", (8, 5)), HOSTILE)], HOSTILE, 'good"><script>')
    report.add_figure(figures.confusion(torch.eye(2, dtype=torch.int64), [HOSTILE, "b"]), HOSTILE)
    tags = Tags(report.html())
    assert "script" not in tags.found
    assert not tags.open


def test_a_page_needs_nothing_else(tmp_path):
    report = Report("Both", "of a toy")
    for found in (
        evaluate_zero_shot(ColourMethod(-0.6), ColourPictures(), templates="{}", device="cpu", resamples=5),
        evaluate_retrieval(ColourMethod(-0.6), ColourPictures(), device="cpu", resamples=5),
    ):
        found.add_to(report)
    page = report.save(tmp_path / "deep" / "folder")
    tags = Tags(page.read_text())
    assert tags.found.count("svg") == 3
    assert tags.found.count("img") > 4  # best and worst examples
    assert all(address.startswith(("data:", "#")) for address in tags.addresses)
    data = json.loads((page.parent / "report.json").read_text())
    assert data["Retrieval"]["metrics"]["text_retrieval_recall@1"] <= 1
    assert data["Zero-shot classification"]["per_class"][0]["class"] == "red"
    assert "95 %" in data["Retrieval"]["protocol"]["intervals"]


def test_figures_take_the_colour_of_the_text():
    report = Report("Ink")
    report.add_figure(figures.curves({"loss": [(1, 2.0), (2, 1.0)], "gap": [(1, 0.0), (2, 0.5)]}))
    assert "currentColor" in report.html()
    assert figures.INK not in report.html()


def test_names_that_are_taken_get_a_number():
    report = Report("Twice")
    for value in range(3):
        report.record("run", value)
    assert report.data == {"run": 0, "run 2": 1, "run 3": 2}


def test_what_is_not_defined_is_null_and_a_dash():
    found = Result("Few", {"acc5": float("nan")}, {"acc5": (float("nan"), 1.0)}, {})
    assert found.to_json()["metrics"] == {"acc5": None}
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["intervals"] == {"acc5": [None, 1.0]}
    assert found.rows() == [["acc5", "–", "– to 1"]]
    assert [number(value) for value in (0.1234, 12.0, 0)] == ["0.123", "12", "0.000"]


@pytest.mark.parametrize("size", [1, 2, 50])
def test_figures_of_odd_sizes(size):
    labels = torch.arange(size)
    names = [f"class {n}" for n in range(size)]
    report = Report("Odd")
    report.add_figure(figures.embedding_map(torch.randn(size, 1), labels, names))
    report.add_figure(figures.embedding_map(torch.ones(size, 4)))
    report.add_figure(figures.confusion(torch.zeros(size, size, dtype=torch.int64), names))
    report.add_figure(figures.recall_curves({"a": torch.zeros(size, dtype=torch.int64)}, {"a": size}))
    assert report.html().count("<svg") == 4
