"""Triplet convolutions, attention over features, and descriptors of objects and pairs against 3DSSG's code."""

import pytest
import torch
from safetensors.torch import load_file

from collimate_3d.graphs.feature_attention import FeatureAttention, attended
from collimate_3d.graphs.geometry import pair_numbers, point_numbers
from collimate_3d.graphs.triplets import TripletConvolution, convolved
from collimate_3d.object_encoder import ObjectPointNet

GOLDEN = "scene_graph_gcn"


def close(found, golden_set, key, rule="eval"):
    tolerance = golden_set.config["tolerance"][rule]
    torch.testing.assert_close(found.detach(), golden_set.expected[key], **tolerance, msg=lambda m: f"{key}: {m}")


def triplets(golden_set):
    settings = golden_set.config["triplet"]
    layers = torch.nn.ModuleList(
        TripletConvolution(
            settings["dim_node"],
            settings["dim_edge"],
            settings["dim_hidden"],
            settings["aggregate_at"],
            settings["aggregation"],
            settings["batch_norm"],
        )
        for _ in range(settings["num_layers"])
    )
    weights = load_file(golden_set.folder / "weights.safetensors")
    prefix = "triplet.gconvs."
    layers.load_state_dict({key.removeprefix(prefix): each for key, each in weights.items() if key.startswith(prefix)})
    return layers


def test_triplet_convolutions(golden_set):
    layers = triplets(golden_set).eval()
    nodes, edge = (golden_set.inputs[name].clone().requires_grad_() for name in ("node", "edge"))
    edges = golden_set.inputs["edge_index"]
    first_nodes, first_edge = layers[0](nodes, edges, edge)
    close(first_nodes, golden_set, "triplet.eval.layer0_node")
    close(first_edge, golden_set, "triplet.eval.layer0_edge")
    found_nodes, found_edge = convolved(layers, nodes, edges, edge)
    close(found_nodes, golden_set, "triplet.eval.node")
    close(found_edge, golden_set, "triplet.eval.edge")
    gradients = torch.autograd.grad(found_nodes.square().sum() + found_edge.square().sum(), (nodes, edge))
    close(gradients[0], golden_set, "triplet.eval.grad_node", "gradients")
    close(gradients[1], golden_set, "triplet.eval.grad_edge", "gradients")
    for name, found in zip(("node", "edge"), convolved(layers.train(), nodes, edges, edge), strict=True):
        close(found, golden_set, f"triplet.train.{name}", "train")


def test_batch_norms_are_the_published_ones(golden_set):
    settings = golden_set.config["triplet"]
    norms = [each for each in triplets(golden_set).modules() if isinstance(each, torch.nn.BatchNorm1d)]
    assert bool(norms) == settings["batch_norm"]
    for norm in norms:
        assert (norm.eps, norm.momentum) == (settings["batch_norm_eps"], settings["batch_norm_momentum"])


def test_attention_over_features(golden_set):
    settings = golden_set.config["fan"]
    if settings["batch_norm"]:
        pytest.skip("the layer has no batch norms, and this set's has")
    assert settings["dim_edge"] == settings["dim_atten"]
    widths = settings["dim_node"], settings["dim_edge"], settings["num_heads"]
    layers = torch.nn.ModuleList(
        FeatureAttention(*widths, settings["aggregation"]) for _ in range(settings["num_layers"])
    )
    weights, prefix = load_file(golden_set.folder / "weights.safetensors"), "fan.gconvs."
    layers.load_state_dict({key.removeprefix(prefix): each for key, each in weights.items() if key.startswith(prefix)})
    given = golden_set.inputs
    nodes, edge, shares = attended(layers, given["fan.node"], given["edge_index"], given["fan.edge"])
    close(nodes, golden_set, "fan.node")
    close(edge, golden_set, "fan.edge")
    for number, share in enumerate(shares):
        close(share, golden_set, f"fan.prob{number}")


def test_descriptors(golden_set):
    names = sorted((name for name in golden_set.inputs if name.startswith("points.")), key=lambda name: int(name[7:]))
    close(torch.stack([point_numbers(golden_set.inputs[name]) for name in names]), golden_set, "descriptor11")
    found = pair_numbers(golden_set.inputs["descriptor8"], golden_set.inputs["edge_index"])
    close(found, golden_set, "edge_descriptor8")


def test_points_of_objects(golden_set):
    settings = golden_set.config["pointnet"]
    prefix = "pointnet."
    weights = load_file(golden_set.folder / "weights.safetensors")
    own = {key.removeprefix(prefix): each for key, each in weights.items() if key.startswith(f"{prefix}conv")}
    hidden = (len(own["conv1.bias"]), len(own["conv2.bias"]))
    encoder = ObjectPointNet(settings["out_size"], settings["point_size"], hidden)
    encoder.load_state_dict(own)
    close(encoder(golden_set.inputs["pointnet.points"].mT).pooled, golden_set, "pointnet.feat")
