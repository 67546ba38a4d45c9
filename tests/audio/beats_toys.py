"""BEATs and what trains it, small enough that a step takes milliseconds."""

import torch

from collimate_audio import (
    BEATs,
    BeatsDistillation,
    BeatsPretraining,
    BeatsTokenizer,
    Estimator,
    FilterBank,
    LabelPredictor,
    RandomTokenizer,
)

CODES, CODE_WIDTH = 16, 6
SIZES = {"buckets": 16, "max_distance": 12}
ENCODER = {
    "width": 24,
    "layers": 2,
    "heads": 3,
    "hidden": 40,
    "patch_width": 16,
    "position_kernel": 6,
    "position_groups": 4,
    **SIZES,
}
OFFICIAL = {
    "input_patch_size": 16,
    "embed_dim": 16,
    "encoder_layers": 2,
    "encoder_embed_dim": 24,
    "encoder_ffn_embed_dim": 40,
    "encoder_attention_heads": 3,
    "conv_pos": 6,
    "conv_pos_groups": 4,
    "num_buckets": 16,
    "max_distance": 12,
    "deep_norm": True,
    "relative_position_embedding": True,
    "gru_rel_pos": True,
}
"""`ENCODER` as the released checkpoints say it."""
PREDICTOR = {"encoder_width": 24, "labels": CODES, "width": 20, "layers": 1, "heads": 2, "hidden": 40, **SIZES}
ESTIMATOR = {"code_width": CODE_WIDTH, "width": 24, "layers": 1, "heads": 3, "hidden": 40, **SIZES}
RANDOM = {"codes": CODES, "width": CODE_WIDTH, "patch_width": 16}
LEARNED = {"codes": CODES, "width": CODE_WIDTH}
FRONT_END = {"seconds": 0.5, "mel_bands": 48}


def pretraining(tokenizer=True, encoder=None, **changes):
    torch.manual_seed(0)
    made = RandomTokenizer(**RANDOM) if tokenizer is True else tokenizer or None
    encoder = BEATs(**{**ENCODER, **(encoder or {})})
    return BeatsPretraining(encoder, LabelPredictor(**PREDICTOR), FilterBank(**FRONT_END), made, **changes)


def distillation(encoder=None, tokenizer=None, **changes):
    torch.manual_seed(0)
    teacher = BEATs(**ENCODER)
    learned = BeatsTokenizer(BEATs(**{**ENCODER, **(encoder or {})}), **{**LEARNED, **(tokenizer or {})})
    estimator = changes.pop("estimator", None) or Estimator(**ESTIMATOR)
    return BeatsDistillation(learned, teacher, estimator, FilterBank(**FRONT_END), **changes)


def clips(count=6, seed=0):
    """Waveforms as the front end makes them, some with padding, and their places in a stream."""
    generator = torch.Generator().manual_seed(seed)
    sounds = torch.randn(count, 8000, generator=generator) * torch.linspace(0.01, 0.3, count)[:, None]
    ends = torch.tensor([8000, 5200, 8000, 3000, 7000, 8000])[torch.arange(count) % 6]
    sounds = sounds.masked_fill(torch.arange(8000) >= ends[:, None], torch.nan)
    return {"audio": sounds, "position": torch.arange(count) + 10 * seed}


def section(class_name, **init_args):
    """A part of a recipe."""
    return {"class_path": f"collimate_audio.{class_name}", "init_args": init_args}


def recipe(model, train="world-sound:train?length=40&seconds=0.6", steps=4, **sections):
    """A recipe of `train` that takes a second."""
    made = {
        "model": model,
        "data": {"train": train, "batch_size": 4},
        "optimization": {"lr": 3e-3, "warmup": 1},
        "trainer": {"max_steps": steps, "log_every_n_steps": 1, "accelerator": "cpu", "enable_progress_bar": False},
        "checkpoint": {"every_steps": 1},
    }
    for name, changes in sections.items():
        made[name] = {**made.get(name, {}), **changes}
    return made


def pretraining_section(tokenizer=None, **encoder):
    """The model of an encoder's recipe."""
    return section(
        "BeatsPretraining",
        encoder=section("BEATs", **ENCODER, **encoder),
        predictor=section("LabelPredictor", **PREDICTOR),
        processor=section("FilterBank", **FRONT_END),
        tokenizer=tokenizer or section("RandomTokenizer", **RANDOM),
    )


def distillation_section(teacher=None, **encoder):
    """The model of a tokenizer's recipe."""
    return section(
        "BeatsDistillation",
        tokenizer=section(
            "BeatsTokenizer", encoder=section("BEATs", **ENCODER, **encoder), **LEARNED, restart_below=0.3
        ),
        teacher=teacher or section("BEATs", **ENCODER),
        estimator=section("Estimator", **ESTIMATOR),
        processor=section("FilterBank", **FRONT_END),
    )
