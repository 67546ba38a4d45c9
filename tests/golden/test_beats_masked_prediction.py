"""Masked label prediction: what ESPnet keeps, encodes, predicts and learns, from its weights and its noise."""

import pytest
import torch
from safetensors.torch import load_file

from collimate_audio import BEATs, FilterBank, LabelPredictor, hide_patches, label_accuracy, masked_label_loss

GOLDEN = "beats_masked_prediction"


@pytest.fixture
def found(golden_set):
    config = golden_set.config
    weights = load_file(golden_set.folder / "weights.safetensors")
    own = {name.removeprefix("encoder."): value for name, value in weights.items() if name.startswith("encoder.")}
    beats = BEATs.from_official({"cfg": config, "model": own})
    own = {name.removeprefix("decoder."): value for name, value in weights.items() if name.startswith("decoder.")}
    predictor = LabelPredictor(
        config["encoder_embed_dim"],
        config["codebook_vocab_size"],
        config["decoder_embed_dim"],
        config["decoder_layers"],
        own["decoder_blocks.0.self_attn.relative_attention_bias.weight"].shape[1],
        own["decoder_blocks.0.fc1.weight"].shape[0],
        "learned",
        config["num_buckets"],
        config["max_distance"],
    )
    predictor.load_state_dict(own)
    return golden_set, beats.eval(), predictor.eval()


def front_end(golden_set):
    settings, waveforms = golden_set.config["test"], golden_set.inputs["waveform"]
    seconds = waveforms.shape[1] / settings["sample_rate"]
    processor = FilterBank(seconds, mean=settings["fbank_mean"], std=settings["fbank_std"])
    padded = torch.arange(waveforms.shape[1]) >= golden_set.inputs["lengths"][:, None]
    waveforms = waveforms.masked_fill(padded, torch.nan)
    return processor.finish(waveforms), processor.mask(waveforms)


def real_rows(name, golden_set, actual, mask):
    """The rows that count, computed and expected."""
    expected = golden_set.expected[name]
    torch.testing.assert_close(actual[mask], expected[mask], rtol=0, atol=golden_set.tolerance(name)["atol"])


def test_masked_prediction(found):
    golden_set, beats, predictor = found
    config, labels = golden_set.config, golden_set.inputs["labels"]
    bank, frames = front_end(golden_set)
    real = beats.token_mask(bank, frames)
    visible = hide_patches(golden_set.inputs["mask_noise"], real, config["mask_ratio"])
    tokens = beats.visible(bank, visible.indices, visible.mask, config["test"]["original_positions_in_encoder"])
    logits = predictor(tokens, visible, real)
    loss = masked_label_loss(logits, labels, visible.hidden, config["label_smoothing"])
    loss.backward()
    seen = real & ~visible.hidden
    modules = torch.nn.ModuleDict({"encoder": beats, "decoder": predictor})
    gradients = {f"grad.{name}": parameter.grad for name, parameter in modules.named_parameters()}
    real_rows("encoder_out_kept", golden_set, tokens, visible.mask)
    real_rows("logits", golden_set, logits, real)
    golden_set.compare(
        {
            "patch_lengths": real.sum(1),
            "kept": seen.float(),
            "loss": loss.reshape(1),
            "loss_no_smoothing": masked_label_loss(logits, labels, visible.hidden).reshape(1),
            "acc_masked": label_accuracy(logits, labels, visible.hidden).accuracy.reshape(1),
            "acc_unmasked": label_accuracy(logits, labels, seen).accuracy.reshape(1),
            "count_masked": visible.hidden.sum().float().reshape(1),
            "count_unmasked": seen.sum().float().reshape(1),
            **{name: gradients[name] for name in golden_set.expected if name.startswith("grad.")},
        }
    )
