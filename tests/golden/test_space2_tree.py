"""The similarities of annotation trees and the contrast in ten subspaces against SPACE-2's."""

import json

import torch
from safetensors.torch import load_file

from collimate.losses import Subspaces, tree_similarities, view_supcon_losses
from collimate.losses.annotation_trees import VIEWS, combined_similarities

GOLDEN = "space2_tree"


def trees(golden_set):
    return json.loads((golden_set.folder / "frames.json").read_text())


def test_similarities(golden_set):
    assert list(VIEWS) == golden_set.config["views"]
    frames = trees(golden_set)
    golden_set.compare({"score_matrices": tree_similarities(frames), "combined_score": combined_similarities(frames)})


def test_losses(golden_set):
    weights = load_file(golden_set.folder / "weights.safetensors")
    encoded, temperature = golden_set.inputs["encoder_output_two_passes"], golden_set.inputs["temperature"]
    heads = Subspaces(encoded.shape[1], len(VIEWS), golden_set.config["subspace_dim"])
    heads.linear.load_state_dict({name.rpartition(".")[2]: value for name, value in weights.items()})
    features = heads(torch.stack(encoded.chunk(2), 1))
    losses = view_supcon_losses(features, tree_similarities(trees(golden_set)), temperature)
    losses = losses * temperature / golden_set.config["base_temperature"]
    losses.mean().backward()
    unlabelled = view_supcon_losses(features, None, temperature) * temperature / golden_set.config["base_temperature"]
    golden_set.compare(
        {
            "features": features,
            "loss_per_view": losses,
            "loss_labelled": losses.mean(),
            "loss_unlabelled": unlabelled.mean(),
            "grad__projection_0_weight": heads.linear.weight.grad,
        }
    )
