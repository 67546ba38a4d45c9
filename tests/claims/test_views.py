"""Claims of contrast between views of pictures, at small scale: AMCL's heads and temperatures, SupCon's labels.

Real pictures, small: the excerpt of Caltech-101 (1200 for training, 600 others for testing, 60 classes). All arms have
the same tower, see two views of each picture and are judged by the nearest neighbours of its vectors:

- SimCLR's loss (one head, one temperature of 0.5), views that are cropped alone, and views that are also mirrored,
  made grey and changed in colour;
- AMCL (three heads, a temperature for each pair), with the same two kinds of views;
- SupCon, which knows the labels, with the second kind.
"""

from functools import cache, partial
from io import BytesIO
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from collimate.data import ImageAugmentation, open_source
from collimate.encoders import MLPProjection, TimmImageEncoder
from collimate.evaluation import evaluate_probe
from collimate.losses import supcon_loss
from collimate.processing import ImageProcessor
from collimate_vision_language import AMCL, SupCon

from .experiment import Listed, compare, train

SIDE, STEPS, BATCH, SEEDS = 32, 150, 64, range(3)
TOWER = {"channels": [16, 24, 48, 96], "stem_width": 8, "output_stride": 16}

CROPS, ALL = "crops", "all augmentations"


class SimCLR(AMCL):
    """Its tower and heads under SimCLR's loss."""

    def losses(self, embeddings, batch):
        features = torch.stack([embeddings["image"], embeddings["image_view"]], 1)
        return {"simclr": supcon_loss(features[:, :, 0], temperature=0.5)}  # 0.5: SimCLR's of CIFAR-10


@cache
def pictures(folder: Path, split: str) -> Listed:
    """Decoded once, at a size a little above the tower's."""
    source = open_source(str(folder / f"{split}-*.tar"))
    samples = [source.read(place) for place in range(len(source))]
    for sample in samples:
        sample["png"] = Image.open(BytesIO(sample.pop("jpg"))).convert("RGB").resize((SIDE + 16, SIDE + 16))
    return Listed(samples)


def views(kind: str) -> ImageAugmentation:
    if kind == CROPS:
        return ImageAugmentation(scale=(0.2, 1.0))
    jitter = v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4)], 0.8)
    return ImageAugmentation(scale=(0.2, 1.0), horizontal_flip=0.5, then=[jitter, v2.RandomGrayscale(0.2)])


def tower() -> TimmImageEncoder:
    return TimmImageEncoder("resnet10t", model_args=TOWER)


def simclr() -> SimCLR:
    return SimCLR(tower(), ImageProcessor(SIDE), heads=1)


def amcl() -> AMCL:
    return AMCL(tower(), ImageProcessor(SIDE))


def supcon() -> SupCon:
    return SupCon(tower(), ImageProcessor(SIDE), head=MLPProjection(96, 128, activation="relu"))


def arm(seed: int, folder: Path, build, kind: str) -> dict[str, float]:
    method = train(build, pictures(folder, "train"), seed, STEPS, BATCH, augmentations={"image": views(kind)})
    found = evaluate_probe(
        method,
        pictures(folder, "train"),
        pictures(folder, "test"),
        kinds=("knn",),
        random_encoder=False,
        resamples=2,
    )
    return {"nearest neighbours": found.metrics["knn/acc1"]}


pytestmark = pytest.mark.timeout(3600)


@pytest.fixture(scope="module")
def outcome(shared_data):
    folder = shared_data / "images_caltech101"
    arms = {
        **{f"SimCLR, {kind}": partial(arm, folder=folder, build=simclr, kind=kind) for kind in (CROPS, ALL)},
        **{f"AMCL, {kind}": partial(arm, folder=folder, build=amcl, kind=kind) for kind in (CROPS, ALL)},
        "SupCon": partial(arm, folder=folder, build=supcon, kind=ALL),
    }
    return compare("views", arms, SEEDS)


@pytest.mark.slow
def test_all_learn(outcome):
    """What AMCL's heads and temperatures add does not show; see the guide."""
    for found in outcome.values.values():
        assert min(found["nearest neighbours"]) > 2 / 60
