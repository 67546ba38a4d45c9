"""BEATs' tokenizers: labels, what is quantized, and one step of distillation, from the official weights."""

import pytest
import torch
from safetensors.torch import load_file

from collimate_audio import BEATs, BeatsTokenizer, Estimator, FilterBank, RandomTokenizer, distillation_loss
from collimate_audio.codebook import code_counts


def weights_of(golden_set, prefix=""):
    weights = load_file(golden_set.folder / "weights.safetensors")
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def bank_and_frames(golden_set, padding="exact"):
    settings, waveforms = golden_set.config["test"], golden_set.inputs["waveform"]
    samples = waveforms.shape[1]
    processor = FilterBank(
        samples / settings["sample_rate"],
        settings["sample_rate"],
        settings["num_mel_bins"],
        settings["fbank_mean"],
        settings["fbank_std"],
        padding,
    )
    if "padding_mask" in golden_set.inputs:
        padded = golden_set.inputs["padding_mask"].bool()
    else:
        padded = torch.arange(samples) >= golden_set.inputs["lengths"][:, None]
    waveforms = waveforms.masked_fill(padded, torch.nan)
    return processor.finish(waveforms), processor.mask(waveforms)


def compare_labels(golden_set, name, labels, margin):
    """Where no second code is as near as the first but for rounding."""
    sure = margin.flatten() >= golden_set.config["test"]["label_margin"]
    assert sure.float().mean() > 0.9
    assert torch.equal(labels.flatten()[sure], golden_set.expected[name].flatten()[sure])


def test_random_projection(golden):
    golden_set = golden("beats_random_projection")
    config, expected = golden_set.config, golden_set.expected
    tokenizer = RandomTokenizer(config["quant_n"], config["quant_dim"], config["embed_dim"])
    weights = weights_of(golden_set)
    tokenizer.load_state_dict(
        {
            "patch_weight": weights["patch_embedding.weight"],
            "projection": weights["random_projection_quantizer.random_projection.weight"],
            "codebook": weights["random_projection_quantizer.codebook"],
        }
    )
    bank, frames = bank_and_frames(golden_set)
    golden_set.compare({"patch_ln": tokenizer.patches(bank), "projected_ln": tokenizer.projected(bank)})
    compare_labels(golden_set, "codes", tokenizer.labels(bank), expected["margin"])
    golden_set.compare({"code_lengths": (tokenizer.labels(bank, frames) >= 0).sum(1)})


def test_tokenizer(golden):
    golden_set = golden("beats_tokenizer")
    checkpoint = {"cfg": golden_set.config, "model": weights_of(golden_set)}
    tokenizer = BeatsTokenizer.from_official(checkpoint, padding="official").eval()
    usage = tokenizer.quantize.usage.clone()
    bank, frames = bank_and_frames(golden_set, "official")
    for number, (name, mask) in enumerate((("nomask", None), ("masked", frames)), 1):
        vectors, real = tokenizer.encodings(bank, mask)
        quantized = tokenizer.quantize(vectors)  # the released code gives padding labels too
        usage = usage.lerp(
            code_counts(quantized.codes, tokenizer.codes), 1 - golden_set.config["test"]["quantizer_decay"]
        )
        golden_set.compare(
            {
                f"quantize_input_{name}": vectors,
                f"embed_loss_{name}": quantized.loss.reshape(1),
                f"cluster_size_after_{number}_eval": usage,  # which in the released code moves in evaluation
            }
        )
        compare_labels(golden_set, f"labels_{name}_flat", quantized.codes, golden_set.expected[f"margin_{name}"])
        labels = tokenizer.labels(bank, mask)
        assert torch.equal(labels, quantized.codes if real is None else quantized.codes.masked_fill(~real, -100))
    golden_set.compare({"mask_patches": (~real).float()})


@pytest.fixture
def distillation(golden):
    golden_set = golden("beats_tokenizer_distillation")
    config = golden_set.config
    tokenizer = BeatsTokenizer.from_official({"cfg": config, "model": weights_of(golden_set, "encoder.")})
    teacher = BEATs.from_official({"cfg": config, "model": weights_of(golden_set, "teacher.")}).eval()
    weights = weights_of(golden_set, "decoder.")
    estimator = Estimator(
        config["quant_dim"],
        config["decoder_embed_dim"],
        config["decoder_layers"],
        weights["decoder_blocks.0.self_attn.relative_attention_bias.weight"].shape[1],
        weights["decoder_blocks.0.fc1.weight"].shape[0],
        buckets=config["num_buckets"],
        max_distance=config["max_distance"],
    )
    estimator.load_state_dict(weights)
    tokenizer.quantize.beta, tokenizer.quantize.decay = config["embed_loss_beta"], config["quantizer_decay"]
    return golden_set, tokenizer, teacher, estimator


def test_distillation(distillation):
    golden_set, tokenizer, teacher, estimator = distillation
    bank, frames = bank_and_frames(golden_set)
    with torch.no_grad():
        target = teacher(bank, frames).tokens
    vectors, real = tokenizer.encodings(bank, frames)
    quantized = tokenizer.quantize(vectors)  # the released code counts padding
    estimated = estimator(quantized.vectors, real)
    cosine = distillation_loss(estimated, target, real)
    loss = cosine + quantized.loss
    loss.backward()
    everything = torch.nn.ModuleDict({"encoder": tokenizer, "decoder": estimator})
    gradients = {
        name.replace("encoder.encoder.patch", "encoder.patch"): p.grad for name, p in everything.named_parameters()
    }
    golden_set.compare(
        {
            "lengths": real.sum(1),
            "teacher_features": target,
            "codes": quantized.codes,
            "quantize_feature": quantized.vectors,
            "estimator_out": estimated,
            "cos_loss": cosine.reshape(1),
            "embed_loss": quantized.loss.reshape(1),
            "loss": loss.reshape(1),
            "codebook_after": tokenizer.quantize.codebook,
            "cluster_size_after": tokenizer.quantize.usage,
            **{name: gradients[name.removeprefix("grad.")] for name in golden_set.expected if name.startswith("grad.")},
        }
    )
