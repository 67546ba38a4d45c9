"""Zero-shot classification: prompts, ensembles of embeddings and of similarities, and the whole way."""

import json

import pytest
import torch
from torch.nn.functional import normalize

from collimate.evaluation.prompts import TEMPLATE_SETS, prompts, template_list
from collimate.evaluation.zero_shot import class_scores, class_vectors, evaluate_zero_shot
from collimate.testing import run_on_ranks

from .toys import COLOURS, ColourMethod, ColourPictures, TokenMethod

OPTIONS = {"device": "cpu", "templates": ["a {} thing.", "{c}"], "resamples": 20}


def test_a_perfect_model_is_right_everywhere():
    found = evaluate_zero_shot(ColourMethod(), ColourPictures(), **OPTIONS)
    assert found.metrics == {"acc1": 1.0, "acc5": 1.0, "mean_per_class_recall": 1.0}
    assert found.intervals["acc1"] == (1.0, 1.0)
    assert found.protocol["samples"] == 23
    assert "a red thing." in found.protocol["prompts"]


def test_prompts_are_those_asked_for_else_the_datas_else_the_modalitys():
    class Worded(ColourPictures):
        templates = ("my {}",)

    def prompt(data, **given):
        found = evaluate_zero_shot(ColourMethod(), data, device="cpu", resamples=2, **given)
        return found.protocol["prompts"].split("such as ")[1]

    assert prompt(Worded(), templates="your {}") == "'your red'"
    assert prompt(Worded()) == "'my red'"
    assert prompt(ColourPictures()) == "'a bad photo of a red.'"


@pytest.mark.parametrize("method", [ColourMethod(-0.6), TokenMethod(-0.6)], ids=["cosine", "tokens"])
def test_batches_and_ranks_change_nothing(method):
    def metrics(batch_size):
        return evaluate_zero_shot(method, ColourPictures(), batch_size=batch_size, **OPTIONS).metrics

    alone = metrics(23)
    assert alone["acc1"] < 1
    assert [metrics(5), *run_on_ranks(metrics, [(3,), (3,)])] == [alone] * 3


def test_similarities_are_averaged_where_the_score_is_no_cosine():
    method = TokenMethod(0.2)
    samples = method.encode("image", torch.rand(5, 3))
    texts = method.encode("text", torch.rand(4, 3))
    owner = [0, 1, 1, 1]
    found = class_scores(method, samples, texts, owner, 2)
    each = method.similarity(samples, texts)
    torch.testing.assert_close(found, torch.stack([each[:, 0], each[:, 1:].mean(1)], 1))


def test_the_length_of_a_prompts_vector_has_no_weight():
    vectors = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    wanted = normalize(normalize(vectors, dim=1).mean(0), dim=0)
    scaled = class_vectors(vectors * torch.tensor([[1.0], [50.0], [0.01]]), [0, 0, 0], 1)
    torch.testing.assert_close(scaled[0], wanted)


def test_full_texts_of_classes_need_no_template(tmp_path):
    file = tmp_path / "texts.json"
    file.write_text(json.dumps({"colours": {name: [f"something {name}"] for name in reversed(COLOURS)}}))
    found = evaluate_zero_shot(ColourMethod(), ColourPictures(), f"{file}#colours", device="cpu", resamples=5)
    assert found.metrics["acc1"] == 1.0  # in the order of the data's classes, not of the file's
    assert found.names == list(COLOURS)


def test_class_names_and_templates_of_a_file(tmp_path):
    file = tmp_path / "classes.yaml"
    file.write_text("classes: [cat, dog]\ntemplates: ['one {}', 'two {c}']\n")
    assert prompts(str(file)) == {"cat": ["one cat", "two cat"], "dog": ["one dog", "two dog"]}
    assert prompts(["cat"], "no {}") == {"cat": ["no cat"]}
    assert prompts(None, "{}", ["known"]) == {"known": ["known"]}


@pytest.mark.parametrize(("name", "count"), list(zip(TEMPLATE_SETS, (80, 7, 1, 1), strict=True)))
def test_template_sets(name, count):
    templates = template_list(name)
    assert len(templates) == len(set(templates)) == count
    assert all(template.count("{}") == 1 for template in templates)


def test_what_is_wrong_with_prompts_is_said(tmp_path):
    with pytest.raises(ValueError, match="do not know their class names"):
        prompts(None)
    with pytest.raises(ValueError, match="where the class name belongs"):
        prompts(["cat"], ["a photo"])
    with pytest.raises(FileNotFoundError, match="Template sets: imagenet"):
        prompts(["cat"], "imagnet")
    with pytest.raises(ValueError, match="list of texts"):
        prompts({"cat": "a cat"})
    with pytest.raises(ValueError, match="texts for 1 classes, and 2"):
        prompts({"cat": ["a cat"]}, known=["cat", "dog"])
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ValueError, match="neither JSON nor YAML"):
        prompts(str(tmp_path / "broken.json"))
    with pytest.raises(ValueError, match="between 0 and 1"):
        evaluate_zero_shot(ColourMethod(), ColourPictures(), ["red", "blue"], "{}", device="cpu")


def test_groups_are_resampled_whole():
    groups = torch.zeros(23, dtype=torch.int64)
    found = evaluate_zero_shot(ColourMethod(-0.6), ColourPictures(), groups=groups, **OPTIONS)
    assert found.intervals["acc1"][0] == found.intervals["acc1"][1]
