"""filip_loss, late interaction and token selection against lucidrains/x-clip and the authors' MindSpore code.

The MindSpore code departs from the paper (zero vectors for padding, a scale a direction, clipped logits, label
smoothing); its numbers come out of our parts put together that way.
"""

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import linear, normalize

from collimate.losses import Weights, filip_loss, late_interaction, select_tokens, symmetric_info_nce_of_scores
from collimate.testing import oracles

GOLDEN = "filip_loss"


def test_filip_loss(golden_set, case):
    CASES[case](golden_set)


def paper(golden):
    leaves = {
        name: golden.inputs[name].clone().requires_grad_()
        for name in ("image_tokens", "text_tokens", "logit_scale_param")
    }
    weights = {name: value.requires_grad_() for name, value in load_file(golden.folder / "weights.safetensors").items()}
    image = linear(of_patches(golden, leaves["image_tokens"]), weights["to_visual_latent.weight"])
    text = linear(leaves["text_tokens"], weights["to_text_latent.weight"])
    mask, scale = text_mask(golden), leaves["logit_scale_param"].exp()
    normalized = golden.config["normalize_tokens"]
    loss = filip_loss(image, text, scale, text_mask=mask, normalize=normalized)
    loss.backward()
    actual = {
        "loss": loss,
        "logits_image_to_text": scale * late_interaction(image, text, None, mask),
        "logits_text_to_image": scale * late_interaction(text, image, mask, None),
        **{f"grad_{name}": leaf.grad for name, leaf in leaves.items()},
        **{f"grad_{name.removesuffix('.weight')}": weight.grad for name, weight in weights.items()},
    }
    golden.compare_all("paper/", actual)
    image, text = image.detach().double(), text.detach().double()
    dense = oracles.filip_loss(image, text, scale.detach().double(), text_mask=mask)
    torch.testing.assert_close(loss.detach().double(), dense, rtol=1e-5, atol=1e-6)


def ensemble(golden):
    """A class is the mean of its prompts' similarities, as `collimate.evaluation.zero_shot` takes it."""
    from collimate.evaluation.zero_shot import class_means

    image = of_patches(golden, golden.inputs["projected_image_tokens"])
    scores = late_interaction(image, golden.inputs["projected_text_tokens"], None, text_mask(golden))
    rows = golden.inputs["ensemble/text_row_of_class_prompt"]
    classes = torch.arange(len(rows)).repeat_interleave(rows.shape[1]).tolist()
    golden.compare_all("ensemble/", {"class_scores": class_means(scores[:, rows.flatten()], classes, len(rows))})


def huawei(golden):
    settings, mask = golden.cases["huawei"], text_mask(golden)
    scale, low_high = golden.inputs["huawei/logit_scale_param"].exp(), settings["logit_clip"]
    actual = {}
    for name, smoothing in settings["label_smoothing"].items():
        image, text = (golden.inputs[f"projected_{side}_tokens"].clone().requires_grad_() for side in ("image", "text"))
        zeroed, patches = text * mask[..., None], of_patches(golden, image)
        per_image = (scale * late_interaction(patches, zeroed)).clamp(*low_high)
        per_text = (scale * late_interaction(text, patches, mask, None)).clamp(*low_high)
        pairs = torch.eye(len(text)) * (1 - smoothing) + smoothing / len(text)
        loss = symmetric_info_nce_of_scores(per_image, per_text, 1.0, targets=Weights(pairs))
        loss.backward()
        actual |= {f"{name}/loss": loss, f"{name}/grad_image": image.grad, f"{name}/grad_text": text.grad}
    share = float(golden.inputs[settings["top_fraction"]])
    with torch.no_grad():
        images, texts = (normalize(side, dim=-1) for side in (patches, zeroed))
        top_images, top_texts = select_tokens(images, texts, shares=(share, share))
    actual |= {
        "logits_per_image": per_image,
        "logits_per_text": per_text,
        "top_tokens_image": top_images.tokens,
        "top_tokens_text": top_texts.tokens,
        "top_tokens_text_mask": mask.take_along_dim(top_texts.places, 1).int(),
    }
    golden.compare_all("huawei/", actual)


def declip(golden):
    pytest.skip("keeps tokens by their similarity to the own partner, and no mask: for comparison only")


def xclip_released_literal(golden):
    pytest.skip("normalised over images in both directions: no FILIP loss")


CASES = {case.__name__: case for case in (paper, ensemble, huawei, declip, xclip_released_literal)}


def of_patches(golden, tokens):
    return tokens[:, 1:] if golden.config["drop_class_token"] else tokens


def text_mask(golden):
    """True up to the end token; an id of padding may be a word's too."""
    ends = (golden.inputs["text_ids"] == golden.config["end_id"]).long()
    return ends.cumsum(-1) - ends == 0
