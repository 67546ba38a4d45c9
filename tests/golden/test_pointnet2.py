"""PointNet++ in both published families: samples, groups, features, gradients and statistics of the official code."""

import pytest
import torch
from safetensors.torch import load_file

from collimate_3d.operators import ball_query, farthest_points, gathered
from collimate_3d.pointnet2 import (
    FeaturePropagation,
    GlobalAbstraction,
    MultiScaleSetAbstraction,
    SetAbstraction,
    VoteFeaturePropagation,
    VoteSetAbstraction,
)
from collimate_3d.weights import load_weights

GOLDEN = "pointnet2"


@pytest.fixture
def weights(golden_set):
    return load_file(golden_set.folder / "weights.safetensors")


def close(golden_set, actual, expected, kind="eval"):
    rule = golden_set.config["tolerance"][kind]
    torch.testing.assert_close(actual, expected, atol=rule["atol"], rtol=rule["rtol"])


def named(weights, prefix):
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def inputs_of(golden_set, xyz):
    given = golden_set.inputs[xyz], golden_set.inputs.get("features")
    return [None if each is None else each.clone().requires_grad_() for each in given]


# Pointnet_Pointnet2_pytorch -------------------------------------------------------------------------------------


@pytest.fixture
def plain(golden_set, weights):
    """The official chain of modules."""
    settings, features = golden_set.config["A"], golden_set.config["feature_channels"]
    one, several, every = settings["sa1"], settings["sa2_msg"], settings["sa3_all"]
    width1, width3 = one["mlp"][-1], every["mlp"][-1]
    width2 = sum(mlp[-1] for mlp in several["mlps"])
    modules = torch.nn.ModuleDict(
        {
            "sa1": SetAbstraction(one["npoint"], one["radius"], one["nsample"], features, one["mlp"]),
            "sa2_msg": MultiScaleSetAbstraction(
                several["npoint"], several["radii"], several["nsamples"], width1, several["mlps"]
            ),
            "sa3_all": GlobalAbstraction(width2, every["mlp"]),
            "fp3": FeaturePropagation(width2 + width3, settings["fp3"]["mlp"]),
            "fp2": FeaturePropagation(width1 + settings["fp3"]["mlp"][-1], settings["fp2"]["mlp"]),
            "fp1": FeaturePropagation(settings["fp2"]["mlp"][-1], settings["fp1"]["mlp"]),
        }
    )
    load_weights(modules, named(weights, "A."))
    return modules


def run_plain(golden_set, modules, xyz, features):
    first, second = (golden_set.inputs[f"A.fps_idx{number}"][:, 0] for number in (1, 2))
    xyz1, features1 = modules["sa1"](xyz, features, first)
    xyz2, features2 = modules["sa2_msg"](xyz1, features1, second)
    xyz3, features3 = modules["sa3_all"](xyz2, features2)
    risen2 = modules["fp3"](xyz2, xyz3, features2, features3)
    risen1 = modules["fp2"](xyz1, xyz2, features1, risen2)
    risen0 = modules["fp1"](xyz, xyz1, None, risen1)
    return {
        "l1_xyz": xyz1,
        "l1_feat": features1,
        "l2_xyz": xyz2,
        "l2_feat": features2,
        "l3_feat": features3,
        "fp3": risen2,
        "fp2": risen1,
        "fp1": risen0,
    }


def test_plain_samples_and_groups(golden_set):
    inputs, settings = golden_set.inputs, golden_set.config["A"]["sa1"]
    index1, index2 = inputs["A.fps_idx1"], inputs["A.fps_idx2"]
    assert torch.equal(farthest_points(inputs["xyz"], index1.shape[1], index1[:, 0]), index1)
    centres = gathered(inputs["xyz"], index1)
    assert torch.equal(farthest_points(centres, index2.shape[1], index2[:, 0]), index2)
    found = ball_query(inputs["xyz"], centres, settings["radius"], settings["nsample"], inclusive=True)
    assert torch.equal(found.index, golden_set.expected["A.ball_idx1"])


def test_plain_features_and_gradients(golden_set, plain):
    xyz, features = inputs_of(golden_set, "xyz")
    found = run_plain(golden_set, plain.eval(), xyz, features)
    for name, value in found.items():
        close(golden_set, value.mT, golden_set.expected[f"A.eval.{name}"])
    (found["fp1"].square().sum() + found["l3_feat"].square().sum()).backward()
    close(golden_set, xyz.grad.mT, golden_set.expected["A.eval.grad_xyz"], "gradients")
    if features is not None:
        close(golden_set, features.grad.mT, golden_set.expected["A.eval.grad_features"], "gradients")


def test_plain_training_and_its_statistics(golden_set, plain):
    xyz, features = inputs_of(golden_set, "xyz")
    for name, value in run_plain(golden_set, plain.train(), xyz, features).items():
        close(golden_set, value.mT, golden_set.expected[f"A.train.{name}"], "train")
    state = plain.state_dict()
    for name, value in named(golden_set.expected, "A.after_train.").items():
        close(golden_set, state[name], value, "train")


# VoteNet --------------------------------------------------------------------------------------------------------


@pytest.fixture
def votenet(golden_set, weights):
    settings = golden_set.config["B"]
    modules, width, widths = {}, golden_set.config["feature_channels"], []
    for name, one in settings["modules"].items():
        modules[name] = VoteSetAbstraction(
            one["npoint"], one["radius"], one["nsample"], width, one["mlp"], one["normalize_xyz"], one["pooling"]
        )
        width = one["mlp"][-1]
        widths.append(width)
    modules["fp1"] = VoteFeaturePropagation(widths[1] + widths[2], settings["fp1"]["mlp"])
    made = torch.nn.ModuleDict(modules)
    load_weights(made, named(weights, "B."))
    return made.eval()


def test_votenet_samples_groups_features_and_gradients(golden_set, votenet):
    xyz, features = inputs_of(golden_set, "B.xyz")
    levels, place, feature = {}, xyz, features
    for name in golden_set.config["B"]["modules"]:
        place, feature, index = votenet[name](place, feature)
        levels[name] = place, feature
        assert torch.equal(index.int(), golden_set.expected[f"B.{name}_inds"])
        close(golden_set, place, golden_set.expected[f"B.{name}_xyz"])
        close(golden_set, feature.mT, golden_set.expected[f"B.{name}_feat"])
    first = golden_set.config["B"]["modules"]["sa1"]
    found = ball_query(xyz, levels["sa1"][0], first["radius"], first["nsample"])
    assert torch.equal(found.index.int(), golden_set.expected["B.ball_idx1"])
    (fine, fine_features), (coarse, coarse_features) = levels["sa2"], levels["sa3"]
    risen = votenet["fp1"](fine, coarse, fine_features, coarse_features)
    close(golden_set, risen.mT, golden_set.expected["B.fp1"])
    risen.square().sum().backward()
    close(golden_set, xyz.grad, golden_set.expected["B.grad_xyz"], "gradients")
