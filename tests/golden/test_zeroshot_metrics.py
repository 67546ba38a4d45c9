"""Prompt ensembles, classification and retrieval metrics against CLIP_benchmark's own."""

from torch.nn.functional import normalize

from collimate.evaluation.metrics import (
    average_precision,
    classification_metrics,
    multilabel_metrics,
    retrieval_metrics,
)
from collimate.evaluation.zero_shot import class_vectors

GOLDEN = "zeroshot_metrics"


def test_metrics(golden_set, case):
    settings = golden_set.cases[case]
    inputs = {
        name.removeprefix(f"{case}/"): tensor
        for name, tensor in golden_set.inputs.items()
        if name.startswith(f"{case}/")
    }
    found = {"classification": classification, "retrieval": retrieval}[settings["kind"]](golden_set, settings, inputs)
    golden_set.compare_all(f"{case}/", found)


def classification(golden_set, settings, inputs):
    prompts = inputs["prompt_text_features"]
    classes, templates, width = prompts.shape
    vectors = class_vectors(
        prompts.reshape(-1, width), [number for number in range(classes) for _ in range(templates)], classes
    )
    scores = golden_set.config["logit_scale"] * normalize(inputs["image_features"], dim=-1) @ vectors.T
    several = inputs["multilabel"]
    return {
        "classifier_weights": vectors.T,
        "logits": scores,
        "average_precision_per_class": average_precision(scores, several),
        **classification_metrics(scores, inputs["labels"]),
        **multilabel_metrics(scores, several),
    }


def retrieval(golden_set, settings, inputs):
    found = retrieval_metrics(
        inputs["image_features"], inputs["text_features"], inputs["image_index_of_text"], settings["recall_k"]
    )
    return {name.replace("@", "_at_"): value for name, value in found.items()}
