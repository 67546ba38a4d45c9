"""Zero-shot scores of findings against CheXzero's and MoRE's."""

import numpy as np
import torch

from collimate.evaluation.metrics import auroc, average_precision
from collimate_medical.zero_shot import best_text_scores, official_interval, presence_scores, spread, standardized


def close(golden_set, key, found, rule):
    rule = {"rtol": 0.0, "equal_nan": True, **golden_set.config["tolerance"][rule]}
    found, wanted = torch.as_tensor(found).double(), golden_set.expected[key].double()
    torch.testing.assert_close(found, wanted, **rule, msg=lambda m: f"{key}: {m}")


def test_chexzero(golden):
    golden_set = golden("zeroshot_cxr/chexzero")
    inputs, settings = golden_set.inputs, golden_set.config["bootstrap"]
    present, absent = (inputs[f"text_{side}"].transpose(0, 1) for side in ("positive", "negative"))
    by_pair = [
        presence_scores(inputs["image"], present[:, [pair]], absent[:, [pair]]) for pair in range(present.shape[1])
    ]
    close(golden_set, "prob", torch.stack(by_pair), "prob")
    scores = presence_scores(inputs["image"], present, absent)
    close(golden_set, "prob_ensemble", scores, "prob")
    close(golden_set, "auroc", auroc(scores, inputs["labels"]), "auroc")
    size = len(scores)
    draws = [np.random.RandomState(seed).randint(0, size, size) for seed in range(settings["samples"])]
    resampled = torch.stack([auroc(scores[draw], inputs["labels"][draw]) for draw in draws])
    close(golden_set, "bootstrap_auroc", resampled, "bootstrap_auroc")
    interval = torch.stack(official_interval(resampled, settings["ci_level"]))
    close(golden_set, "ci_mean_lower_upper", interval, "ci_mean_lower_upper")


def test_more(golden):
    golden_set = golden("zeroshot_cxr/more")
    inputs = golden_set.inputs
    scores = best_text_scores(inputs["image"], inputs["text"])
    z = standardized(scores)
    close(golden_set, "class_score", scores, "scores")
    close(golden_set, "class_score_z", z, "scores")
    close(golden_set, "class_score_minmax", spread(scores), "scores")
    close(golden_set, "auroc", auroc(z, inputs["labels"]), "auroc")
    close(golden_set, "auprc", average_precision(z, inputs["labels"]), "auprc")
    assert torch.equal(scores.argmax(1), golden_set.expected["argmax_raw"])
    assert torch.equal(z.argmax(1), golden_set.expected["argmax_z"])
