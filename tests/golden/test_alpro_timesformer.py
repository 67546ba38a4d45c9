"""ALPRO's video encoder: tokens and gradients of the official code, from its own weights, at the size it was built for
and at others.
"""

import pytest
import torch
from safetensors.torch import load_file

from collimate_video import TimeSformer, pooled_over_time

GOLDEN = "alpro"


@pytest.fixture
def weights(golden_set):
    return load_file(golden_set.folder / "weights.safetensors")


@pytest.fixture
def encoder(golden_set, weights):
    return TimeSformer.from_official(weights, heads=golden_set.config["video"]["heads"], drop_path=0.0).eval()


def place_by_place(encoding):
    """The official order: the class token, then the patches row by row, each with all its frames."""
    frames = encoding.grid[0]
    patches = encoding.tokens.unflatten(1, (frames, -1)).transpose(1, 2).flatten(1, 2)
    return torch.cat([encoding.pooled[:, None], patches], 1)


def close(actual, expected, tolerance):
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance["outputs"]["atol"])


def test_tokens(golden_set, encoder):
    expected, tolerance = golden_set.expected, golden_set.config["tolerance"]
    found = encoder(golden_set.inputs["visual_inputs"])
    close(place_by_place(found), expected["video_tokens_unpooled"], tolerance)
    close(pooled_over_time(found).pooled_first().tokens, expected["video_embeds"], tolerance)


def test_clips_of_other_sizes(golden_set, encoder):
    inputs = load_file(golden_set.folder / "timesformer_resize_inputs.safetensors")
    expected = load_file(golden_set.folder / "timesformer_resize_expected.safetensors")
    for number in golden_set.config["resize_clips"]:
        found = encoder(inputs[f"clip_{number}"].transpose(1, 2))
        close(place_by_place(found), expected[f"tokens_{number}"], golden_set.config["tolerance"])


def test_the_teacher_loads_by_its_prefix(golden_set, encoder, weights):
    settings = {"heads": golden_set.config["video"]["heads"], "drop_path": 0.0}
    teacher = TimeSformer.from_official(weights, "prompter.visual_encoder.model.", **settings).eval()
    crops = teacher(golden_set.inputs["crop_visual_inputs"]).pooled
    projection = [weights[f"prompter.vision_proj.{name}"] for name in ("weight", "bias")]
    features = torch.nn.functional.normalize(torch.nn.functional.linear(crops, *projection), dim=1)
    close(features, golden_set.expected["crop_feat"], golden_set.config["tolerance"])


def test_every_weight_is_taken(encoder, weights):
    prefix = "visual_encoder.model."
    assert {name.removeprefix(prefix) for name in weights if name.startswith(prefix)} == encoder.state_dict().keys()
