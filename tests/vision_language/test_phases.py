"""CLIP on small pictures and short texts first: shapes, positions, the scale, and the embeddings it ends with."""

import pytest
import torch
from lightning.pytorch import Trainer

import collimate
from collimate.checkpoints import save
from collimate.data import DataModule, open_source
from collimate.encoders import OpenClipImageEncoder, OpenClipTextEncoder, TimmImageEncoder
from collimate.losses import clip_loss
from collimate.processing import ClipTokenizer, ImageProcessor
from collimate.testing import assert_same_on_ranks
from collimate.training import Optimization, PhaseSchedule
from collimate_vision_language import CLIP

PHASES = [
    {"share": 0.5, "batch": 2, "shapes": {"image": 16, "text": 8}},
    {"share": 0.5, "shapes": {"image": 32, "text": 16}},
]


class Watched(CLIP):
    """CLIP that remembers what its batches were."""

    def losses(self, embeddings, batch):
        self.seen = [*getattr(self, "seen", []), (tuple(batch["image"].shape), tuple(batch["text"].shape))]
        return super().losses(embeddings, batch)


def clip(tower="open_clip", kind=CLIP, **given):
    torch.manual_seed(0)
    sizes = {"patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2, "dynamic_img_size": True}
    towers = {
        "open_clip": lambda: OpenClipImageEncoder(width=32, layers=1, image_size=32, patch_size=8, head_width=16),
        "timm": lambda: TimmImageEncoder("vit_base_patch16_224", image_size=32, model_args=sizes),
    }
    return kind(
        image_encoder=towers[tower](),
        text_encoder=OpenClipTextEncoder(width=32, heads=2, layers=1, context_length=16),
        image_processor=ImageProcessor(32),
        tokenizer=ClipTokenizer(16),
        embed_dim=16,
        **given,
    )


@pytest.mark.parametrize("tower", ["open_clip", "timm"])
def test_a_tiny_clip_trained_in_phases(tower, tmp_path):
    method = clip(tower, Watched)
    method.optimization = Optimization(lr=1e-3, warmup=0, schedule="constant")
    positions = {name: value.shape for name, value in method.named_parameters() if "pos" in name}
    rates = []
    data = DataModule(open_source("world:train?length=64"), batch_size=4, schedule=PhaseSchedule(PHASES))
    trainer = Trainer(
        max_steps=6,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    after = method.after_optimizer_step
    method.after_optimizer_step = lambda: (rates.append(trainer.optimizers[0].param_groups[0]["lr"]), after())
    trainer.fit(method, data)
    assert method.seen == 3 * [((8, 3, 16, 16), (8, 8))] + 3 * [((4, 3, 32, 32), (4, 16))]
    assert rates == pytest.approx(3 * [1e-3 * 2**0.5] + 3 * [1e-3])
    assert {name: value.shape for name, value in method.named_parameters() if "pos" in name} == positions
    assert (method.processors["image"].size, method.processors["text"].context_length) == (32, 16)
    picture = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    plain = clip(tower)
    plain.load_state_dict(method.state_dict())
    save(plain, tmp_path / "model")
    found = collimate.load(tmp_path / "model").eval().encode("image", picture).pooled
    torch.testing.assert_close(found, plain.eval().encode("image", picture).pooled)


@pytest.mark.parametrize("tower", ["open_clip", "timm"])
def test_a_small_picture_reads_an_interpolated_table(tower):
    encoder = clip(tower).encoders["image"].eval()
    assert encoder(torch.randn(2, 3, 16, 16)).grid == (2, 2)
    assert encoder(torch.randn(2, 3, 32, 32)).grid == (4, 4)


def parts(image, text, scale):
    method = object.__new__(CLIP)
    torch.nn.Module.__init__(method)
    method.logit_scale, method.mask_duplicates, method.contrast_size = scale, False, 2
    return method.losses({"image": image, "text": text}, {})["clip"]


def test_a_contrast_of_fixed_size_keeps_its_negatives():
    method, features = clip(contrast_size=2), torch.randn(2, 5, 16)
    found = method.losses({"image": features[0], "text": features[1]}, {})["clip"]
    scale = method.logit_scale.exp()
    pairs = [clip_loss(features[0, rows], features[1, rows], scale) for rows in (slice(0, 2), slice(2, 4), slice(4, 5))]
    torch.testing.assert_close(found, (2 * pairs[0] + 2 * pairs[1] + pairs[2]) / 5)
    assert clip().contrast_size is None


def test_each_contrast_of_fixed_size_is_over_all_ranks():
    """Rank r's first two rows meet the others' first two: 4 samples of 2 ranks, and those that follow likewise."""
    image, text = torch.randn(8, 6), torch.randn(8, 6)
    order = torch.tensor([0, 1, 4, 5, 2, 3, 6, 7])  # by contrast, where two ranks hold four rows each

    def loss(image, text, scale):
        from collimate import distributed

        if distributed.world_size() > 1:
            return parts(image, text, scale)
        halves = zip(image[order].split(4), text[order].split(4), strict=True)
        return torch.stack([clip_loss(*half, scale.exp()) for half in halves]).mean()

    rows, shared = {"image": image, "text": text}, {"scale": torch.tensor(1.5)}
    assert_same_on_ranks(loss, rows, shared, splits=[[4, 4]])
