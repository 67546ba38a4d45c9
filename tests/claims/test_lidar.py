"""E-SSL3D's claims at small scale: what pre-training without labels teaches a backbone, and what few labels make of it.

Streets of the procedural world (synthetic), a quarter of SECOND's widths and voxels of 0.2 m. Every backbone is
pre-trained on the same 400 sweeps without their labels, with the same number of steps:

- E-SSL3D with all three objectives; with agreement over time alone, of which the flow is left out, so that places agree
  whatever has moved through them (in the style of STRL);
- PointContrast, which is the first of its objectives alone; BEVContrast, which needs poses only;
- none, which is where training from scratch begins.

Then one and the same detector is fine-tuned on a tenth of the labels, and judged on other streets by average
precision from above (overlaps of 0.5 for cars, 0.25 for others, the mean of the classes) and by how far off the
headings of cars are. Frozen backbones are asked how far their maps are from moving with the scene, whether a linear
probe tells by how much a sweep was turned (ten bins), and how far features carried along the flow are from those of the
next sweep, where 1 is as far as those of other places.

Settings were chosen on the world's val split; what is reported is of its test split.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from collimate.data import Source
from collimate.data.decoding import value_of
from collimate.training import Method
from collimate_3d.bev import BEVBackbone
from collimate_3d.detection import LOOSE, CenterPoint, evaluate_detection
from collimate_3d.evaluation.equivariance import evaluate_equivariance, evaluate_rotation_probe
from collimate_3d.grid import VoxelGrid
from collimate_3d.lidar.processing import SweepProcessor, SweepView
from collimate_3d.lidar.subsets import label_subset
from collimate_3d.lidar.sweep import PREVIOUS, SWEEP, decode_sweep, encode_sweep
from collimate_3d.losses import flow_warped
from collimate_3d.norms import set_norm_momentum
from collimate_3d.pretraining import ESSL3D, BEVContrast, PointContrast
from collimate_3d.pretraining.parts import cells_at, voxels_of_points
from collimate_3d.voxel_encoder import BEVEncoder, VoxelEncoder
from collimate_world import SweepSource

from .experiment import compare, train

SWEEPS, SHARE, POINTS = 400, 0.1, 6000
STEPS, TUNING = 120, 300
WEIGHTS = {"contrast": 20.48, "rotation": 1.0, "flow": 15.0}  # the paper's balance, as in configs/three_d/essl3d_demo
TIME_ONLY = {"contrast": 0.0, "rotation": 0.0, "flow": 1.0}

SCRATCH, FULL, CONTRAST, PLACES, BEV = "from scratch", "E-SSL3D", "PointContrast", "time without flow", "BEVContrast"


class Kept(Source):
    """Sweeps that are made once, of which some are given."""

    def __init__(self, split: str, length: int, share: float = 1.0, seed: int = 0) -> None:
        self.name, self.samples = f"{split}, {share:g}", made(split, length)
        self.places = label_subset(length, share, seed)

    def __len__(self) -> int:
        return len(self.places)

    def read(self, index: int) -> dict:
        return dict(self.samples[self.places[index]])


class Still(Kept):
    """Sweeps whose flow says that nothing moves."""

    def read(self, index: int) -> dict:
        sample = super().read(index)
        before = decode_sweep(sample[PREVIOUS])
        return sample | {PREVIOUS: encode_sweep(replace(before, flow=np.zeros_like(before.xyz)))}


@cache
def made(split: str, length: int) -> list[dict]:
    source = SweepSource(split, length=length)
    return [source.read(index) for index in range(length)]


def backbone() -> VoxelEncoder:
    grid = VoxelGrid((0.0, -19.2, -3.0), (38.4, 19.2, 1.0), (0.2, 0.2, 0.16))
    encoder = VoxelEncoder(grid, widths=(8, 16, 24, 24), out_width=48)
    set_norm_momentum(encoder, 0.1)
    return encoder


def essl3d() -> ESSL3D:
    widths = {"embed_dim": 32, "projector_width": 64, "predictor_width": 64, "classifier_width": 64}
    means = {"reduction": "mean", "normalise": "occupied"}
    return ESSL3D(
        backbone(),
        SweepProcessor(POINTS),
        pairs=256,
        momentum=0.99,
        norm_momentum=0.1,
        **widths,
        **means,
    )


def point_contrast() -> PointContrast:
    return PointContrast(backbone(), SweepProcessor(POINTS), 32, 64, pairs=256)


def bev_contrast() -> BEVContrast:
    return BEVContrast(backbone(), SweepProcessor(POINTS), embed_dim=32)


def pretrained(build: Callable[[], Method], weights: dict[str, float], seed: int, data: type[Kept] = Kept) -> Method:
    views = {"lidar": SweepView(), "previous_sweep": SweepView()}
    return train(
        build,
        data("train", SWEEPS),
        seed,
        STEPS,
        batch_size=4,
        lr=3e-3,
        augmentations=views if build is bev_contrast else {"lidar": SweepView()},
        weight_decay=0.01,
        betas=(0.9, 0.99),
        loss_weights=weights,
        options={},
    )


def fine_tuned(taught: Method, seed: int) -> CenterPoint:
    def build() -> CenterPoint:
        lift = backbone()
        lift.load_state_dict(taught.encoders["lidar"].state_dict())
        neck = BEVBackbone(lift.width, (2, 2), (1, 2), (48, 48), (2, 4), (32, 32))
        return CenterPoint(BEVEncoder(lift, neck), SweepProcessor(POINTS), head_width=32, norm_momentum=0.1)

    method = train(
        build,
        Kept("train", SWEEPS, SHARE, seed),
        seed,
        TUNING,
        batch_size=4,
        lr=1e-2,
        augmentations={"lidar": SweepView(0.5, 0.3, (0.95, 1.05), 0.0)},
        weight_decay=0.01,
        betas=(0.9, 0.99),
        warmup=0.2,
        loss_weights={"box": 2.0},
        options={},
    )
    assert isinstance(method, CenterPoint)
    return method


def measured(taught: Method, seed: int) -> dict[str, float]:
    judged = evaluate_detection(fine_tuned(taught, seed), Kept("test", 100), overlaps=LOOSE, pictures=0).metrics
    some, others = Kept("val", 40), Kept("test", 100, 0.4)
    moved = evaluate_equivariance(taught, others).metrics
    turned = evaluate_rotation_probe(taught, some, others, views=2).metrics
    return {
        "AP": judged["bev mean all"],
        **{f"AP {name}": judged[f"bev {name} all"] for name in LOOSE},
        "heading error of cars": judged["heading error Car"],
        "equivariance error": sum(moved.values()) / len(moved),
        "rotation accuracy": turned["rotation accuracy"],
        "warp error": warp_error(taught, others),
    }


@torch.no_grad()
def warp_error(method: Method, data: Source) -> float:
    """The distance of unit features, carried along the flow, to those of the next sweep, over that between places."""
    encoder, processor = method.encoders["lidar"], SweepProcessor(POINTS)
    assert isinstance(encoder, VoxelEncoder)
    carried, wanted = [], []
    for index in range(len(data)):
        sample = data.read(index)
        before, now = (value_of(sample, (key,)) for key in (PREVIOUS, SWEEP))
        start, stop = (encoder.batch(processor(each)[None, :POINTS]) for each in (before, now))
        levels, following = encoder.levels(start), encoder.levels(stop)
        moved = before.points.copy()
        moved[:, :3] += before.flow
        after = encoder.batch(processor(moved)[None, :POINTS])
        cells, inside = cells_at(after.xyz, encoder.grid, levels, "out")
        height, width = levels.out.shape[1:]
        keys = ((cells[:, 0] * height + cells[:, 1]) * width + cells[:, 2]).masked_fill(~inside, -1)
        found, features = flow_warped(levels.out.features, voxels_of_points(start, encoder.grid, levels, "out"), keys)
        places = torch.stack([0 * found, found // (height * width), found // width % height, found % width], 1)
        partner = following.out.sites.find(places)
        carried.append(normalize(features[partner >= 0], dim=1))
        wanted.append(normalize(following.out.features[partner[partner >= 0]], dim=1))
    one, other = torch.cat(carried), torch.cat(wanted)
    return float((one - other).square().sum(1).mean() / (one - other.roll(len(other) // 2, 0)).square().sum(1).mean())


@torch.no_grad()
def untaught(seed: int) -> Method:
    """Random weights, whose batch norms have seen sweeps: without that their features vanish layer by layer."""
    torch.manual_seed(seed)
    method, sweeps = bev_contrast().train(), Kept("train", SWEEPS)
    for index in range(40):
        method.encode("lidar", SweepProcessor(POINTS)(value_of(sweeps.read(index), (SWEEP,)))[None, :POINTS])
    return method.eval()


def arm(
    seed: int,
    build: Callable[[], Method] | None = None,
    weights: dict[str, float] | None = None,
    data: type[Kept] = Kept,
) -> dict[str, float]:
    taught = untaught(seed) if build is None else pretrained(build, weights or {}, seed, data)
    return measured(taught, seed)


ARMS = {
    SCRATCH: arm,
    FULL: partial(arm, build=essl3d, weights=WEIGHTS),
    CONTRAST: partial(arm, build=point_contrast),
    PLACES: partial(arm, build=essl3d, weights=TIME_ONLY, data=Still),
    BEV: partial(arm, build=bev_contrast),
}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]  # about an hour of one core, all in the fixture


@pytest.fixture(scope="module")
def outcome():
    return compare("lidar", ARMS, range(5))


def test_features_move_with_what_moves(outcome):
    """The paper's third objective: carried along the flow, features are the next sweep's; and maps move with scenes.

    A probe reads by how much a sweep was turned no better than from random weights; see the guide.
    """
    assert outcome.difference(FULL, SCRATCH, "warp error").high < 0
    assert outcome.difference(FULL, SCRATCH, "equivariance error").high < 0


def test_detectors_learn_from_what_was_taught_without_labels(outcome):
    """The paper's gain is 1 to 4 points. Single runs of ours show none; that it does no harm is what is asked."""
    for arm_name in (FULL, BEV):
        assert outcome.difference(arm_name, SCRATCH, "AP").high > 0
