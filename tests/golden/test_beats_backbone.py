"""BEATs: the official front end, backbone, head and gradients, from the official weights."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from collimate_audio import BEATs, BeatsHead
from collimate_audio.beats_layers import distance_buckets
from collimate_audio.filter_bank import FilterBank

SETS = Path(os.environ.get("COLLIMATE_GOLDEN") or Path(__file__).parent / "data").glob("beats_backbone*")


@pytest.fixture(params=sorted(path.name for path in SETS) or ["beats_backbone"])
def found(request, golden):
    golden_set = golden(request.param)
    weights = load_file(golden_set.folder / "weights.safetensors")
    checkpoint = {"cfg": golden_set.config, "model": weights}
    beats = BEATs.from_official(checkpoint, padding="official")
    head = BeatsHead.from_official(checkpoint) if "predictor.weight" in weights else None
    return golden_set, beats.eval(), head and head.eval()


def front_end(golden_set):
    settings = golden_set.config["test"]
    return FilterBank(
        golden_set.inputs["waveform"].shape[1] / settings["sample_rate"],
        settings["sample_rate"],
        settings["num_mel_bins"],
        settings["fbank_mean"],
        settings["fbank_std"],
        padding="official",
    )


def padded(golden_set):
    """The waveforms as a processor stacks them."""
    return golden_set.inputs["waveform"].masked_fill(golden_set.inputs["padding_mask"].bool(), torch.nan)


def outputs(beats, head, bank, frames):
    plain, masked = beats(bank), beats(bank, frames)
    patches = beats.patch_embedding(bank[:, None])
    values = {
        "patch_conv": patches,
        "patch_tokens_ln": beats.layer_norm(patches.flatten(2).mT),
        "features_nomask": plain.tokens,
        "features_masked": masked.tokens,
        **{f"hidden_{number}_padded": state for number, state in enumerate(beats.features(bank, frames))},
    }
    if head is not None:
        values |= {"probs_nomask": head(plain).sigmoid(), "probs_masked": head(masked).sigmoid()}
    return values


def test_from_the_waveform(found):
    golden_set, beats, head = found
    processor, waveforms = front_end(golden_set), padded(golden_set)
    bank, frames = processor.finish(waveforms), processor.mask(waveforms)
    masks = {"mask_frames": ~frames, "mask_patches": ~beats.token_mask(bank, frames)}
    golden_set.compare({"fbank": bank, **{name: mask.float() for name, mask in masks.items()}})
    golden_set.compare({k: v for k, v in outputs(beats, head, bank, frames).items() if k in golden_set.expected})


def test_from_the_filter_bank(found):
    golden_set, beats, head = found
    expected, tolerance = golden_set.expected, golden_set.config["test"]["atol_from_fbank"]
    frames = ~expected["mask_frames"].bool()
    for name, value in outputs(beats, head, expected["fbank"], frames).items():
        if name in expected:
            torch.testing.assert_close(value, expected[name], rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


def test_positions(found):
    golden_set, beats, _ = found
    if "rel_buckets" not in golden_set.expected:
        pytest.skip("no relative positions in this set")
    positions = torch.arange(len(golden_set.expected["rel_buckets"]))
    settings = beats.settings
    buckets = distance_buckets(positions, settings.buckets, settings.max_distance)
    golden_set.compare({"rel_buckets": buckets.float(), "rel_bias": beats.encoder.layers.position_bias(positions)})


def test_gradients(found):
    golden_set, beats, _ = found
    expected = golden_set.expected
    bank = expected["fbank"].clone().requires_grad_()
    tokens = beats.train()(bank, ~expected["mask_frames"].bool()).tokens
    (tokens * golden_set.inputs["cotangent"]).sum().backward()
    gradients = {f"grad.{name}": parameter.grad for name, parameter in beats.named_parameters()}
    wanted = {name for name in expected if name.startswith("grad.")}
    assert wanted <= gradients.keys()
    golden_set.compare({"grad_fbank": bank.grad, **{name: gradients[name] for name in wanted}})


def test_weights_are_named_as_published(found):
    golden_set, beats, _ = found
    weights = load_file(golden_set.folder / "weights.safetensors")
    unused = ("predictor.",) if beats.settings.relative_position else ("predictor.", "grep_")
    assert {name for name in weights if not any(part in name for part in unused)} == beats.state_dict().keys()
