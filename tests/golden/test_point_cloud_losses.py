"""Losses on point clouds against PointContrast, DepthContrast, ProposalContrast and BEVContrast."""

import pytest
import torch
from safetensors.torch import load_file

from collimate.losses import FeatureQueue, balanced_assignments, info_nce
from collimate.testing import relative_error
from collimate_3d.grid import BEVGrid
from collimate_3d.lidar.bev import collapse_to_map, sample_map
from collimate_3d.losses import (
    ProposalEncoding,
    bev_contrast_loss,
    depth_contrast_losses,
    hardest_contrastive_losses,
    matched_cells,
    point_info_nce,
    proposal_cluster_loss,
    proposal_instance_loss,
)
from collimate_3d.losses.proposal_contrast import CLUSTER_WEIGHT


def compare(golden_set, **found):
    """Names have a double underscore for the point in those of the set."""
    for name, value in found.items():
        wanted = golden_set.expected[name.replace("__", ".")]
        torch.testing.assert_close(value, wanted, **golden_set.config["tolerance"]["all"], check_dtype=False)


def with_gradient(*tensors):
    return [tensor.clone().requires_grad_() for tensor in tensors]


# PointContrast --------------------------------------------------------------------------------------------------


def test_hardest_contrastive(golden):
    golden_set = golden("pointcontrast_losses")
    config, inputs = golden_set.config["hardest"], golden_set.inputs
    first, second = with_gradient(inputs["F0"], inputs["F1"])
    found = hardest_contrastive_losses(
        first, second, inputs["pairs"], inputs["hardest.sel0"], inputs["hardest.sel1"], inputs["hardest.pos_sel"],
        config["pos_thresh"], config["neg_thresh"],
    )  # fmt: skip
    loss = found.positive + config["neg_weight"] * found.negative
    gradients = torch.autograd.grad(loss, (first, second))
    compare(
        golden_set, hardest__pos=found.positive, hardest__neg=found.negative, hardest__loss=loss,
        hardest__grad_F0=gradients[0], hardest__grad_F1=gradients[1],
    )  # fmt: skip


def test_point_info_nce(golden):
    golden_set = golden("pointcontrast_losses")
    config, inputs = golden_set.config["nce"], golden_set.inputs
    first, second = with_gradient(inputs["F0"], inputs["F1"])
    drawn = torch.stack([inputs["nce.q_index"], inputs["nce.k_index"]], 1)
    loss = point_info_nce(first, second, drawn, config["temperature"], normalize=config["normalize"])
    gradients = torch.autograd.grad(loss, (first, second))
    compare(golden_set, nce__loss=loss, nce__grad_F0=gradients[0], nce__grad_F1=gradients[1])


# DepthContrast --------------------------------------------------------------------------------------------------


def test_depth_contrast(golden):
    golden_set = golden("depthcontrast_loss")
    config, inputs = golden_set.config, golden_set.inputs
    queue = FeatureQueue(config["queue_size"], {"points": config["dim"], "voxels": config["dim"]})
    queue["points"].copy_(inputs["queue"].T)
    queue["voxels"].copy_(inputs["queue_other"].T)
    by_hand = [inputs[name].T.clone() for name in ("queue", "queue_other")]
    kinds = [kind in config["loss_types"] for kind in ("NPID", "NPID", "CMC", "CMC")]
    weights = [config["weights"][name] * on for name, on in zip(config["weights"], kinds, strict=True)]
    for step in range(config["steps"]):
        points, voxels = with_gradient(inputs[f"step{step}.points"], inputs[f"step{step}.vox"])
        keys = inputs[f"step{step}.points_moco"], inputs[f"step{step}.vox_moco"]
        parts = torch.stack(
            depth_contrast_losses(points, voxels, *keys, queue["points"], queue["voxels"], config["temperature"])
        )
        loss = (parts * torch.tensor(weights)).sum()
        gradients = torch.autograd.grad(loss, (points, voxels))
        normal = [torch.nn.functional.normalize(key) for key in keys]
        queue.add(points=normal[0], voxels=normal[1])
        found = {
            "loss": loss, "parts": parts, "grad_points": gradients[0], "grad_vox": gradients[1],
        }  # fmt: skip
        compare(golden_set, **{f"step{step}__{name}": value for name, value in found.items()})
        # The set has the queues of the end under the names of all steps: those before are filled in by hand.
        place = torch.arange(step * len(keys[0]), (step + 1) * len(keys[0])) % config["queue_size"]
        for own, written, key in zip((queue["points"], queue["voxels"]), by_hand, normal, strict=True):
            written[place] = key
            torch.testing.assert_close(own, written, rtol=0, atol=0)
    place = queue.added.reshape(1) % config["queue_size"]
    found = {"queue": queue["points"].T, "queue_other": queue["voxels"].T, "queue_ptr": place}
    compare(golden_set, **{f"step{config['steps'] - 1}__{name}": value for name, value in found.items()})


# ProposalContrast -----------------------------------------------------------------------------------------------


def test_proposal_contrast(golden):
    golden_set = golden("proposalcontrast")
    config, inputs = golden_set.config, golden_set.inputs
    (instance,) = with_gradient(inputs["instance"])
    instance_loss = proposal_instance_loss(instance.unflatten(0, (-1, 2)), config["temperature"])
    cosines = torch.nn.functional.normalize(inputs["proj"], dim=1) @ inputs["prototypes"].T
    first, second = with_gradient(cosines[0::2], cosines[1::2])  # the rows of both views are interleaved
    sinkhorn = config["sinkhorn"]
    cluster_loss = proposal_cluster_loss(
        first, second, config["temperature"], sinkhorn["epsilon"], sinkhorn["iterations"]
    )
    assert config["weights"]["cluster"] == CLUSTER_WEIGHT
    compare(
        golden_set, instance_loss=instance_loss, instance_grad=torch.autograd.grad(instance_loss, instance)[0],
        scores=torch.cat([first, second]), cluster_loss=cluster_loss,
        cluster_grad_scores=torch.cat(torch.autograd.grad(cluster_loss, (first, second))),
        total=instance_loss + CLUSTER_WEIGHT * cluster_loss,
        **{
            f"sinkhorn_q_view{at}": balanced_assignments(each.detach(), sinkhorn["epsilon"], sinkhorn["iterations"])
            for at, each in enumerate((first, second))
        },
    )  # fmt: skip


def test_proposal_encoding(golden):
    golden_set = golden("proposalcontrast")
    config, inputs = golden_set.config["encoding"], golden_set.inputs
    encoding = ProposalEncoding(
        config["dim"], config["pos_mlp_hidden_dim"], config["attn_mlp_hidden_mult"], config["downsample"]
    )
    weights = load_file(golden_set.folder / "weights.safetensors")
    encoding.load_state_dict({name.removeprefix("encoding."): value for name, value in weights.items()})
    found = encoding(
        inputs["enc.proposal_feat"][:, 0], inputs["enc.proposal_xyz"][:, 0],
        inputs["enc.neighbour_feat"], inputs["enc.neighbour_xyz"],
    )  # fmt: skip
    compare(golden_set, enc__out=found[:, None])
    with pytest.raises(ValueError, match="cannot be divided by 4"):
        ProposalEncoding(10)


def test_bilinear_interpolation(golden):
    golden_set = golden("proposalcontrast")
    config, inputs = golden_set.config["bilinear"], golden_set.inputs
    places = inputs["bilinear.xy"] - config["cell_offset"]
    found = sample_map(inputs["bilinear.bev"][None], places[None], inside_only=True)[0].T
    edge = torch.tensor([config["width"], config["height"]]) - 1
    inside = ((places >= 0) & (places <= edge)).all(1)
    wanted = golden_set.expected["bilinear.out"]
    torch.testing.assert_close(found[inside], wanted[inside], **golden_set.config["tolerance"]["all"])
    assert (found[~inside] == 0).all()


# BEVContrast ----------------------------------------------------------------------------------------------------


def test_bev_contrast(golden):
    golden_set = golden("bevcontrast")
    config, inputs = golden_set.config, golden_set.inputs
    poses = torch.eye(4).repeat(2, config["batch"], 1, 1)
    for at, side in enumerate(("in", "out")):
        poses[at, :, :3, :3], poses[at, :, :3, 3] = inputs[f"R_{side}"], inputs[f"T_{side}"]
    motion = torch.linalg.inv(poses[0].double()) @ poses[1].double()
    low, high = config["point_cloud_range"][:2], config["point_cloud_range"][3:5]
    rows, columns = config["grid"]
    grid = BEVGrid((rows, columns), ((high[0] - low[0]) / columns, (high[1] - low[1]) / rows), tuple(low))
    moved, other = with_gradient(inputs["bev_in"], inputs["bev_out"])
    occupancies = inputs["occupancy_in"] > 0, inputs["occupancy_out"] > 0
    cells = matched_cells(moved, other, motion, grid, occupancies)
    assert len(cells.moved) <= config["max_cells"]
    loss = bev_contrast_loss(moved, other, motion, grid, config["temperature"], config["max_cells"], occupancies)
    torch.testing.assert_close(loss, info_nce(cells.moved, cells.other, 1 / config["temperature"], normalize=False))
    gradients = torch.autograd.grad(loss, (moved, other))
    compare(golden_set, matched_in=cells.moved, matched_out=cells.other, loss=loss, grad_out=gradients[1])
    # One cell is barely grazed, so that the slope of its unit vector is large, and its place in float32 tells: the
    # published steps, taken in another order, change this gradient by as much as 5e-4.
    assert relative_error(gradients[0], golden_set.expected["grad_in"]) < 2e-4


def test_gradients_of_bev_contrast_are_exact(golden):
    """What float32 leaves open in the set is settled in float64, by torch's own sampling."""
    golden_set = golden("bevcontrast")
    config = golden_set.config
    inputs = {name: value.double() for name, value in golden_set.inputs.items()}
    (rows, columns), half = config["grid"], config["point_cloud_range"][3]
    grid = BEVGrid((rows, columns), (2 * half / columns, 2 * half / rows), (-half, -half))
    motion = torch.eye(4, dtype=torch.float64).repeat(config["batch"], 1, 1)
    back = inputs["R_in"].mT
    motion[:, :3, :3] = back @ inputs["R_out"]
    motion[:, :3, 3] = (back @ (inputs["T_out"] - inputs["T_in"])[..., None])[..., 0]
    occupancies = inputs["occupancy_in"] > 0, inputs["occupancy_out"] > 0

    moved, other = with_gradient(inputs["bev_in"], inputs["bev_out"])
    loss = bev_contrast_loss(moved, other, motion, grid, config["temperature"], config["max_cells"], occupancies)
    found = torch.autograd.grad(loss, (moved, other))

    sides = ((torch.arange(each).double() + 0.5) * (2 * half / each) - half for each in (rows, columns))
    y, x = torch.meshgrid(*sides, indexing="ij")
    places = torch.stack([x, y], -1) @ motion[:, None, :2, :2].mT + motion[:, None, None, :2, 3]
    stacked = torch.cat([moved, occupancies[0][:, None].double()], 1)
    warped = torch.nn.functional.grid_sample(stacked, places / half, align_corners=False).permute(0, 2, 3, 1)
    both = (warped[..., -1] != 0) & occupancies[1]
    unit = [torch.nn.functional.normalize(each[both]) for each in (warped[..., :-1], other.permute(0, 2, 3, 1))]
    wanted = torch.nn.functional.cross_entropy(
        unit[0] @ unit[1].T / config["temperature"], torch.arange(int(both.sum()))
    )
    torch.testing.assert_close(loss, wanted)
    for own, theirs in zip(found, torch.autograd.grad(wanted, (moved, other)), strict=True):
        assert relative_error(own, theirs) < 1e-6


def test_maps_of_voxels(golden):
    golden_set = golden("bevcontrast")
    config, inputs = golden_set.config["collapse"], golden_set.inputs
    voxels = inputs["collapse.coords"].long()
    half = round(golden_set.config["point_cloud_range"][3] / config["voxel_size"])
    x, y = ((voxels[:, :2] + inputs["collapse.pc_min"].long()[:, :2] + half) // config["stride"]).T
    shape = golden_set.expected["collapse.bev"].shape
    cells = torch.stack([voxels[:, 3], y, x], 1)
    inside = ((cells[:, 1:] >= 0) & (cells[:, 1:] < torch.tensor(shape[2:]))).all(1)
    found = collapse_to_map(inputs["collapse.features"][inside], cells[inside], config["batch"], tuple(shape[2:]))
    compare(golden_set, collapse__bev=found)
