"""The losses of MoRE, ConVIRT, GLoRIA, MedCLIP and MERL against the code that each was published with."""

import pytest
import torch
from torch.nn.functional import cosine_similarity

from collimate.evaluation.metrics import retrieval_metrics
from collimate.losses.negatives import text_ids
from collimate_medical.anchored import anchored_losses
from collimate_medical.convirt import convirt_loss
from collimate_medical.gloria import (
    Temperatures,
    gloria_losses,
    local_scores,
    word_attention,
    zero_shot_local_similarity,
    zero_shot_similarity,
)
from collimate_medical.medclip import label_targets, medclip_loss
from collimate_medical.merl import merl_losses


@pytest.fixture
def cases(golden, request):
    """The inputs of each case of the set that the test names, and what holds its numbers against the expected ones."""
    golden_set = golden(request.param)
    keyed = golden_set.config.get("cases", {"": {}})

    def compare(case, found, skip=()):
        prefix = f"{case}." if case else ""
        wanted = {key for key in golden_set.expected if key.startswith(prefix)} - {prefix + key for key in skip}
        assert {prefix + key for key in found} >= wanted
        for key in wanted:
            value = torch.as_tensor(found[key.removeprefix(prefix)]).detach()
            rules = golden_set.config["tolerance"]
            rule = {"rtol": 0.0} | (rules["topk"] if "topk" in rules and key.startswith("top") else rules["all"])
            expected = golden_set.expected[key].reshape(value.shape)
            torch.testing.assert_close(value, expected, **rule, msg=lambda m, k=key: f"{k}: {m}")

    def inputs(case):
        prefix = f"{case}." if case else ""
        return {k.removeprefix(prefix): v for k, v in golden_set.inputs.items() if k.startswith(prefix)}

    return golden_set.config, {case: (settings, inputs(case)) for case, settings in keyed.items()}, compare


def leaves(inputs, *names):
    return [inputs[name].clone().requires_grad_() for name in names]


def named(names, loss, tensors):
    return dict(zip(names, torch.autograd.grad(loss, tensors), strict=True))


@pytest.mark.parametrize("cases", ["more/loss"], indirect=True)
def test_more(cases):
    _, every, compare = cases
    for case, (settings, inputs) in every.items():
        text, xray, ecg, temperature = leaves(inputs, "text", "xray", "ecg", "temperature")
        terms = anchored_losses(text, xray, ecg, 1 / temperature)
        loss = terms.text_xray + terms.text_ecg
        found = named(("grad_text", "grad_xray", "grad_ecg", "grad_temperature"), loss, (text, xray, ecg, temperature))
        idle = [f"grad_{name}" for name, rows in settings["zero_rows"].items() if rows]
        assert all(found[name].isfinite().all() for name in idle)  # divided by the epsilon there: of no use
        found |= {"loss": loss, "loss_text_xray": terms.text_xray, "loss_text_ecg": terms.text_ecg}
        compare(case, found, skip=idle)


@pytest.mark.parametrize("cases", ["more/loss"], indirect=True)
def test_more_with_every_mask_idle_is_the_same(cases):
    """Masks of patients and texts that differ, and of modalities that are all there, change nothing."""
    _, every, _ = cases
    for _, inputs in every.values():
        text, xray, ecg = (inputs[name] for name in ("text", "xray", "ecg"))
        ids, there = torch.arange(len(text)), torch.ones(len(text), dtype=torch.bool)
        words = text_ids(ids[:, None].expand(-1, 3))
        plain = anchored_losses(text, xray, ecg)
        masked = anchored_losses(
            text, xray, ecg, xray_given=there, ecg_given=there, patient_ids=ids, text_ids=words, xray_ecg=True
        )
        torch.testing.assert_close(masked[:2], plain[:2])


@pytest.mark.parametrize("cases", ["convirt"], indirect=True)
def test_convirt(cases):
    _, every, compare = cases
    for case, (settings, inputs) in every.items():
        image, text = leaves(inputs, "image", "text")
        loss = convirt_loss(image, text, 1 / settings["temperature"], settings["alpha"])
        compare(case, {"loss": loss, **named(("grad_image", "grad_text"), loss, (image, text))})


@pytest.mark.parametrize("cases", ["medclip"], indirect=True)
def test_medclip(cases):
    _, every, compare = cases
    for case, (_, inputs) in every.items():
        image, text = leaves(inputs, "image", "text")
        labels = inputs["image_labels"], inputs["text_labels"]
        loss = medclip_loss(image, text, *labels, inputs["logit_scale"], normalize=False)
        soft, _ = label_targets(*labels).blend(torch.eye(len(text)), (len(text),))
        compare(
            case,
            {"loss": loss, "soft_target_image": soft, **named(("grad_image", "grad_text"), loss, (image, text))},
        )


@pytest.mark.parametrize("cases", ["merl"], indirect=True)
def test_merl(cases):
    config, every, compare = cases
    for case, (_, inputs) in every.items():
        names = ("ecg_proj", "text_proj", "ecg_view1", "ecg_view2")
        tensors = leaves(inputs, *names)
        terms = merl_losses(*tensors, 1 / config["temperature"])
        loss = terms.cross_modal + terms.uni_modal
        found = {"cma_loss": terms.cross_modal, "uma_loss": terms.uni_modal, "loss": loss}
        found |= named([f"grad_{name}" for name in names], loss, tensors)
        ecg, text = (each.detach() for each in tensors[:2])
        recalls = retrieval_metrics(ecg, text, torch.arange(len(text)), config["topk"])
        for k in config["topk"]:
            found[f"top{k}"] = 50 * sum(value for name, value in recalls.items() if name.endswith(f"recall@{k}"))
        compare(case, found)


@pytest.mark.parametrize("cases", ["gloria"], indirect=True)
def test_gloria(cases):
    _, every, compare = cases
    for case, (settings, inputs) in every.items():
        image, text, regions, words = leaves(inputs, "img_global", "text_global", "img_local", "text_local")
        flat, slots = regions.flatten(2).mT, words.mT
        places = torch.arange(slots.shape[1])
        mask = places < inputs["cap_lens"][:, None]
        temperatures = Temperatures(*(settings[f"temp{number}"] for number in (1, 2, 3)))
        losses = gloria_losses(image, text, flat, slots, mask, temperatures)
        total = losses.local + losses.pooled
        found = named(
            ("grad_img_global", "grad_text_global", "grad_img_local", "grad_text_local"),
            total,
            (image, text, regions, words),
        )
        scores = local_scores(flat, slots, mask, temperatures)
        pairs = temperatures.pairs * cosine_similarity(image[:, None], text[None], dim=2)
        target = torch.arange(len(image))
        for name, matrix in (("local", scores), ("global", pairs)):
            found[f"{name}_loss_image_to_text"] = torch.nn.functional.cross_entropy(matrix, target)
            found[f"{name}_loss_text_to_image"] = torch.nn.functional.cross_entropy(matrix.T, target)
        seen = (places > 0) & (places <= inputs["cap_lens"][:, None])
        count = int(inputs["cap_lens"][0])
        found |= {
            "total": total,
            "local_scores": scores,
            "attn_map_0": word_attention(flat[:1], slots[0, :count], temperatures.regions)[0].unflatten(
                1, settings["grid"]
            ),
            "zeroshot_local_similarity": zero_shot_local_similarity(flat, slots, seen),
            "zeroshot_global_similarity": pairs / temperatures.pairs,
            "zeroshot_similarity": zero_shot_similarity(image, text, flat, slots, seen),
        }
        compare(case, found)
        sides = [
            found[f"{name}_loss_{way}"] for name in ("local", "global") for way in ("image_to_text", "text_to_image")
        ]
        torch.testing.assert_close(torch.stack([losses.local, losses.pooled]), torch.stack(sides).view(2, 2).sum(1))
