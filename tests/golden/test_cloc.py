"""CLOC's added loss against its equations in float64: no official code was published."""

import torch

from collimate.losses import box_loss, info_nce, region_text_loss
from collimate.losses.regions import different_texts, share_with_regions

GOLDEN = "cloc/loss_reference"


def test_cloc_loss(golden_set):
    inputs = golden_set.inputs
    given = inputs["region_valid"].bool()
    names = ("region_embeddings", "region_text_embeddings", "predicted_boxes")
    leaves = {name: inputs[name].clone().requires_grad_() for name in names}
    region, text, found = (leaf[given] for leaf in leaves.values())
    scale, similar = 1 / inputs["temperature"], float(inputs["similar_text_threshold"])
    contrast = region_text_loss(region, text, scale, similar, normalize=False)
    grounding = box_loss(found, inputs["boxes_xyxy_normalised"][given])
    share = share_with_regions(given)
    added = share * (contrast + grounding)
    gradients = torch.autograd.grad(added, list(leaves.values()))
    one_way = directions(region, text, scale, similar)
    golden_set.compare_all(
        "",
        {
            "loss_cloc": contrast,
            "loss_cloc_without_filter": region_text_loss(region, text, scale, None, normalize=False),
            "loss_region_to_text": one_way[0],
            "loss_text_to_region": one_way[1],
            "loss_grounding": grounding,
            "lambda_": share,
            "added_loss": added,
            "n_dropped_pairs": dropped_pairs(text, similar),
            **{f"grad_{name}": gradient for name, gradient in zip(names, gradients, strict=True)},
        },
    )


def directions(region, text, scale, similar):
    """Each direction alone: the mask is the same for both, as it compares texts with texts."""
    keep = different_texts(text, similar)
    return [info_nce(*pair, scale, mask=keep, normalize=False) for pair in ((region, text), (text, region))]


def dropped_pairs(text, similar):
    everyone = slice(0, len(text))
    return (~different_texts(text, similar)(everyone, everyone)).sum()
