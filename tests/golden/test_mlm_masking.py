"""Which tokens are masked, and by what: counts against those that the official code's probabilities allow."""

import math

import pytest
import torch

from collimate.losses.masked_tokens import UNSCORED, MaskedTokens, choose_tokens, hide_tokens

GOLDEN = "tcl/mlm_masking"


def counts(ids, masked, config):
    pad, cls, sep, mask = (config[f"{name}_id"] for name in ("pad", "cls", "sep", "mask"))
    old, chosen = ids, masked.chosen
    hidden, same = masked.ids == mask, masked.ids == old
    found = {
        "n_eligible": (old != pad) & (old != cls),
        "n_sep": old == sep,
        "n_masked": chosen,
        "n_masked_pad": chosen & (old == pad),
        "n_masked_cls": chosen & (old == cls),
        "n_masked_sep": chosen & (old == sep),
        "n_replaced_by_mask": chosen & hidden,
        "n_unchanged": chosen & same & ~hidden,
        "n_random": chosen & ~same & ~hidden,
        "n_changed_outside_mask": ~chosen & ~same,
    }
    return {name: int(where.sum()) for name, where in found.items()}


def check(found, golden_set):
    config = golden_set.config
    known = {**found, **{name: float(golden_set.inputs[name]) for name in config["settings_in_inputs"]}}
    known |= {name: config[name] for name in ("replace_by_mask", "replace_by_random")}
    for name in config["exact_zero"]:
        assert found[name] == 0, name
    for name in config["exact_from_inputs"]:
        assert found[name] == golden_set.expected[name], name
    for name, rule in config["statistics"].items():
        if rule is None:
            continue
        trials, share = known[rule[0]], eval(rule[1], {}, known)  # the rule is a formula of the set's own file
        allowed = config["binomial_standard_deviations"] * math.sqrt(trials * share * (1 - share))
        assert abs(found[name] - trials * share) <= allowed, (name, found[name], trials * share)


def test_the_counting_holds_for_the_official_draws(golden_set):
    ids = golden_set.inputs["input_ids"].long()
    official = MaskedTokens(*(golden_set.expected[name].long() for name in ("masked_input_ids", "labels")))
    found = counts(ids, official, golden_set.config)
    assert {name: int(golden_set.expected[name]) for name in found} == found
    check(found, golden_set)


@pytest.mark.parametrize("seed", range(5))
def test_our_draws(golden_set, seed):
    config, generator = golden_set.config, torch.Generator().manual_seed(seed)
    ids = golden_set.inputs["input_ids"].long()
    eligible = (ids != config["pad_id"]) & (ids != config["cls_id"])
    chosen = choose_tokens(eligible, float(golden_set.inputs["mlm_probability"]), generator)
    masked = hide_tokens(ids, chosen, config["mask_id"], int(golden_set.inputs["vocab_size"]), generator)
    assert torch.equal(masked.labels, ids.masked_fill(~chosen, UNSCORED))
    check(counts(ids, masked, config), golden_set)
