"""The table of contrasts says what the code declares, and the page is the table."""

import importlib
from pathlib import Path

import pytest

from collimate.inventory import AXES, contrasts, losses
from tools.contrasts import DOCUMENT, document

NOT_COMPOSED = {  # losses that are no contrast of samples, and the parts that contrasts are made of
    "box_loss",
    "ctc_losses",
    "region_losses",
    "region_text_loss",
    "sinkhorn_divergences",
    "late_interaction",
    "matrix_weights_by_distance",
    "pair_weights_by_distance",
    "select_tokens",
    "tree_similarities",
    "balanced_assignments",
    "info_nce",
    "info_nce_losses",
    "symmetric_info_nce",
    "symmetric_info_nce_losses",
    "symmetric_info_nce_of_scores",
    "sigmoid_contrast",
    "mil_nce_losses",
    "symmetric_mil_nce_losses",
}


def test_the_page_is_current():
    assert DOCUMENT.read_text(encoding="utf-8") == document(), "run `python -m tools.contrasts`"


def test_what_is_declared_is_found_on_the_object():
    for name, *choices in contrasts():
        module, _, attribute = name.rpartition(".")
        composition = getattr(importlib.import_module(module), attribute).composition
        assert [getattr(composition, axis) for axis in AXES] == choices


def test_every_named_contrast_declares_what_it_is_composed_of():
    declared = {name.rpartition(".")[2] for name, *_ in contrasts()}
    public = {name.rpartition(".")[2] for name, _ in losses()}
    assert public - declared - NOT_COMPOSED == set()


def test_an_incomplete_declaration_is_refused():
    from collimate.losses.composition import composed

    with pytest.raises(TypeError, match="negatives"):
        composed(similarity="cosine", targets="own pair")  # type: ignore[call-arg]


def test_the_page_lies_in_the_repository():
    assert DOCUMENT.parent.parent == Path(__file__).resolve().parents[2]
