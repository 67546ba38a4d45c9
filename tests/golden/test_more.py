"""MoRE's attention, towers, projections and text tower, and the explanation of transformers, against released code."""

import copy

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from collimate.encoders import HuggingFaceTextEncoder, LoRA
from collimate.processing import Processor
from collimate_medical.anchored import anchored_losses
from collimate_medical.dropkey import DropKeyAttention, linear_shares
from collimate_medical.explanation import attention_rollout, explain, gradient_rollout, recorded_attention
from collimate_medical.more import MoRE
from collimate_medical.relevance import attention_relevance, explain_by_relevance
from collimate_medical.transformers import ECGTransformer, ImageTransformer


def close(found, golden_set, key, rule, wanted=None):
    wanted = golden_set.expected[key] if wanted is None else wanted
    tolerance = {"rtol": 0.0, **golden_set.config["tolerance"][rule]}
    torch.testing.assert_close(found.detach().reshape(wanted.shape), wanted, **tolerance, msg=lambda m: f"{key}: {m}")


# DropKey ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fused", [True, False])
def test_dropkey(golden, fused):
    golden_set = golden("dropkey")
    weights = load_file(golden_set.folder / "weights.safetensors")
    for case, settings in golden_set.cases.items():
        attention = DropKeyAttention(
            settings["dim"], settings["heads"], settings["ratio"], settings["qkv_bias"], settings["qk_norm"]
        )
        own = {name.removeprefix(f"{case}."): value for name, value in weights.items() if name.startswith(f"{case}.")}
        attention.load_state_dict(own)
        attention.fused_attn = fused
        tokens = golden_set.inputs[f"{case}.x"].clone().requires_grad_()
        close(attention.eval()(tokens), golden_set, f"{case}.eval_out", "all")
        out = attention.train()(tokens, golden_set.inputs[f"{case}.drop_mask"].bool())
        close(out, golden_set, f"{case}.train_out", "all")
        close(torch.autograd.grad(out.square().sum(), tokens)[0], golden_set, f"{case}.grad_x", "all")


def test_schedules(golden):
    golden_set = golden("dropkey")
    for name, settings in golden_set.config["schedules"].items():
        close(torch.tensor(linear_shares(settings["layers"], settings["start"])), golden_set, name, "all")


# The whole model --------------------------------------------------------------------------------------------------


class Given(Processor):
    """Inputs that are tensors already, of which 1 is padding where they are ids."""

    def mask(self, batch):
        return batch != 1 if batch.dtype == torch.long else None


@pytest.fixture
def model(golden):
    golden_set = golden("more/model")
    config = golden_set.config
    text, lora, ecg = config["text"], config["lora"], config["ecg"]
    roberta = HuggingFaceTextEncoder(
        {
            "model_type": "roberta",
            "hidden_size": text["hidden"],
            "num_hidden_layers": text["layers"],
            "num_attention_heads": text["heads"],
            "intermediate_size": text["ffn_width"],
            "vocab_size": text["vocab_size"],
            "max_position_embeddings": text["max_positions"],
            "type_vocab_size": text["type_vocab_size"],
            "pad_token_id": text["pad_id"],
            "layer_norm_eps": text["layer_norm_eps"],
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        }
    )
    targets = rf".*self\.({'|'.join(lora['target_modules'])})"
    sizes = {"width": config["width"], "depth": config["depth"], "heads": config["heads"], "dropkey": 0.0}
    method = MoRE(
        ImageTransformer(config["image_size"], config["patch_size"], **sizes),
        ECGTransformer(ecg["samples"], ecg["leads"], ecg["stem_channels"], **sizes),
        LoRA(roberta, lora["r"], lora["alpha"], 0.0, targets),
        *[Given() for _ in range(3)],
        embed_dim=config["projection"]["output"],
        init_logit_scale=1 / config["temperature"],
        pool_padding=True,
    )
    method.load_official(load_file(golden_set.folder / "weights.safetensors"))
    inputs = golden_set.inputs
    grey = (inputs["xray_gray_uint8"] / 255 - config["xray_mean"]) / config["xray_std"]
    batch = {"xray": grey[:, None].expand(-1, 3, -1, -1), "ecg": inputs["ecg"], "text": inputs["input_ids"]}
    assert torch.equal(Given().mask(batch["text"]), inputs["attention_mask"].bool())
    return golden_set, method, batch


@torch.no_grad()
def test_more_in_evaluation(model):
    golden_set, method, batch = model
    method.eval()
    for modality in ("xray", "ecg"):
        encoding = method.encoders[modality](batch[modality])
        close(encoding.pooled, golden_set, f"eval_{modality}_features", "outputs")
    stem = method.encoders["ecg"].patch_embed(batch["ecg"]).mT
    close(stem[0], golden_set, "eval_ecg_tokens_sample0", "outputs")
    text = method.encoders["text"](batch["text"], batch["text"] != 1)
    close(text.tokens.mean(1), golden_set, "eval_text_pooled", "outputs")
    close(method.projections["text"](text.pooled), golden_set, "eval_text_proj_masked_mean", "outputs")
    embeddings = method.embed(batch)
    for modality, found in embeddings.items():
        close(found, golden_set, f"eval_{modality}_proj", "outputs")
    close(torch.stack(list(method.loss_terms(batch).values())).sum(), golden_set, "eval_loss", "losses")


def test_more_in_training(model):
    """Batch norms over four pictures that look alike magnify rounding: what it does to ours is allowed on top, and
    gradients are held against the largest entry of their tensor."""
    golden_set, method, batch = model
    method.train()
    exact = {name: value.double() if value.is_floating_point() else value for name, value in batch.items()}
    with torch.no_grad():
        exact = copy.deepcopy(method).double().embed(exact)
    batch["ecg"] = batch["ecg"].clone().requires_grad_()
    embeddings = method.embed(batch)
    for modality, found in embeddings.items():
        key, stated = f"train_{modality}_proj", golden_set.config["tolerance"]["outputs"]
        rounding = (found - exact[modality]).abs().max().item()
        assert rounding < 1e-3
        error = (found - golden_set.expected[key]).abs()
        assert (error <= stated["atol"] + stated["rtol"] * golden_set.expected[key].abs() + 4 * rounding).all(), key
    terms = method.losses(embeddings, batch)
    loss = method.total_loss(terms)
    close(loss, golden_set, "train_loss", "losses")
    loss.backward()
    gradients = {"grad_ecg_sample0": batch["ecg"].grad[0]}
    ours = dict(method.named_parameters())
    official = {
        "xray_model.vit_model": "encoders.xray",
        "ecg_model.vit_model": "encoders.ecg",
        "projector_xray_text": "projections.xray",
        "projector_ecg_text": "projections.ecg",
        "projector_text": "projections.text",
        "text_model.base_model": "encoders.text.encoder",
    }
    for name in golden_set.config["grad_names"]:
        prefix = next(each for each in official if name.startswith(each))
        parameter = ours[official[prefix] + name.removeprefix(prefix)]
        if parameter.requires_grad:
            gradients[f"grad/{name}"] = parameter.grad
    assert len(gradients) > 1
    for key, gradient in gradients.items():
        wanted = golden_set.expected[key]
        largest = (gradient - wanted).abs().max() / wanted.abs().max()
        assert largest < golden_set.config["tolerance"]["gradients"]["rtol"], key


def test_official_names(model):
    """Other scripts' names, an old peft's, a temperature: all the same weights. A missing one is named."""
    golden_set, method, _ = model
    weights = load_file(golden_set.folder / "weights.safetensors")
    before = {name: value.clone() for name, value in method.state_dict().items()}
    other = {
        "module."
        + name.replace("projector_xray_text", "projector_xray")
        .replace("projector_ecg_text", "projetor_ecg_text")
        .replace(".base_layer.", "."): value
        for name, value in weights.items()
    }
    nn.init.zeros_(method.encoders["xray"].pos_embed)
    method.load_official({**other, "temperature": torch.tensor(0.02)})
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())
    other.pop("module.xray_model.vit_model.norm.bias")
    with pytest.raises(ValueError, match=r"1 are missing, such as 'encoders\.xray\.norm\.bias'"):
        method.load_official(other)


def test_the_loss_is_that_of_the_projections(model):
    golden_set, method, _ = model
    found = [golden_set.expected[f"eval_{modality}_proj"] for modality in ("text", "xray", "ecg")]
    terms = anchored_losses(*found, 1 / golden_set.config["temperature"])
    close(terms.text_xray + terms.text_ecg, golden_set, "eval_loss", "losses")
    assert method.logit_scale.exp().item() == pytest.approx(1 / golden_set.config["temperature"])


# Explanation ------------------------------------------------------------------------------------------------------


def test_explanation(golden):
    golden_set = golden("explain")
    config, inputs = golden_set.config, golden_set.inputs
    weights = load_file(golden_set.folder / "weights.safetensors")
    tower = ImageTransformer(
        config["image_size"],
        config["patch_size"],
        config["width"],
        config["depth"],
        config["heads"],
        config["mlp_ratio"],
        qkv_bias=config["qkv_bias"],
    ).eval()
    tower.norm.eps = config["final_norm_eps"]
    tower.load_state_dict({name: value for name, value in weights.items() if not name.startswith("head.")})

    def logits(encoding):
        return encoding.pooled @ weights["head.weight"].T + weights["head.bias"]

    def score(encoding):
        return logits(encoding)[:, config["class_index"]]

    close(logits(tower(inputs["x"])), golden_set, "logits", "logits")
    with recorded_attention(tower) as attentions:
        total = score(tower(inputs["x"])).sum()
        gradients = torch.autograd.grad(total, attentions)
    close(torch.cat(attentions), golden_set, "attn", "attn")
    close(torch.cat(gradients), golden_set, "attn_grad", "attn_grad")
    first = config["start_layer"]
    rolled = gradient_rollout(attentions, gradients, first)
    close(rolled, golden_set, "gradient_rollout", "gradient_rollout")
    close(attention_rollout(attentions, first), golden_set, "attention_rollout", "attention_rollout")
    assert rolled.min().item() == pytest.approx(
        golden_set.expected["gradient_rollout_signless_check"].item(), rel=1e-3, abs=1e-6
    )
    with torch.inference_mode():
        again = explain(tower, inputs["x"], score, first)
    close(again, golden_set, "gradient_rollout", "gradient_rollout")
    relevances, gradients = attention_relevance(tower, inputs["x"], score)
    close(torch.cat(relevances), golden_set, "attn_relevance", "attn_relevance")
    close(torch.cat(gradients), golden_set, "attn_grad", "attn_grad")
    found = explain_by_relevance(tower, inputs["x"], score, first)
    close(found, golden_set, "transformer_attribution", "transformer_attribution")
