"""Attention over objects, alignment and masked modelling against the code of 3D-VLP, 3D-VisTA and SceneVerse."""

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import batch_norm, cross_entropy, linear, normalize, prelu

from collimate.losses import Weights, clip_loss, info_nce_losses
from collimate.losses.masked_tokens import masked_token_losses, mean_of_chosen
from collimate_3d.graphs.attention import Attention, PlaceAttention, offset_bias
from collimate_3d.graphs.geometry import pair_offsets, pair_places, position_clues
from collimate_3d.scene_graph_vlp.objectives import named_object_losses

GOLDEN = "scene_language"


def close(found, golden_set, key, rule="outputs"):
    tolerance = golden_set.config["tolerance"][rule]
    torch.testing.assert_close(found.detach(), golden_set.expected[key], **tolerance, msg=lambda m: f"{key}: {m}")


@pytest.fixture
def weights(golden_set):
    return load_file(golden_set.folder / "weights.safetensors")


def under(weights, *prefixes):
    """The weights below any of these prefixes, without them."""
    return {
        name.removeprefix(prefix): value
        for prefix in prefixes
        for name, value in weights.items()
        if name.startswith(prefix)
    }


def attention_of(weights, prefix, heads):
    own = under(weights, f"{prefix}.attention.") | {
        f"layer_norm.{name}": value for name, value in under(weights, f"{prefix}.layer_norm.").items()
    }
    layer = Attention(len(own["fc_q.bias"]), heads)
    layer.load_state_dict(own)
    return layer.eval()


# Attention --------------------------------------------------------------------------------------------------------


def test_attention(golden_set, weights):
    settings, given = golden_set.config["attention"], golden_set.inputs
    layer = attention_of(weights, "attention", settings["heads"])
    mask = (given["attention.mask"] != settings["mask_hidden"])[:, 0, 0]
    close(layer(given["attention.q"], given["attention.kv"], mask), golden_set, "attention.cross", "attention")
    query, bias = given["attention.q"], given["attention.weights"]
    close(layer(query, query, None, bias), golden_set, "attention.self_add", "attention")


def test_relations_of_proposals(golden_set, weights):
    """3D-VLP's relation module, put together from our layers as its code does.

    Its branch of all proposals begins each layer with what was there before any attention, which ours does not.
    """
    settings, corners = golden_set.config["relation"], golden_set.inputs["relation.corners"]
    clues, own = position_clues(corners), under(weights, "relation.")
    close(clues, golden_set, "relation.manual_bbox_feat")
    visible = ~golden_set.inputs["mpm.mask"].bool()
    nodes = some = _detector_features(own, golden_set.inputs["relation.feature"])
    for depth in range(settings["depth"]):
        bias = offset_bias(settings["heads"])
        bias.load_state_dict(under(weights, f"relation.self_attn_fc.{depth}."))
        added = bias(pair_offsets(clues[..., :3])).permute(0, 3, 1, 2)
        embedded = linear(clues, own[f"bbox_embedding.{depth}.weight"], own[f"bbox_embedding.{depth}.bias"])
        nodes, some = nodes + embedded, some + embedded
        found = attention_of(weights, f"relation.self_attn.{depth}", settings["heads"])(nodes, nodes, None, added)
        some = attention_of(weights, f"relation.self_attn_m.{depth}", settings["heads"])(some, some, visible, added)
    close(added, golden_set, "relation.dist_weights", "attention")
    close(found, golden_set, "relation.bbox_feature", "attention")
    projected = normalize(linear(found, own["bbox_proj.weight"], own["bbox_proj.bias"]), dim=-1)
    close(projected, golden_set, "relation.bbox_proj_emb", "attention")
    wanted = golden_set.expected["relation.bbox_feature_vis"].flatten(0, 1)
    torch.testing.assert_close(some[visible], wanted, **golden_set.config["tolerance"]["attention"])


def _detector_features(own, features):
    """3D-VLP's layers between its detector and the relations, which belong to the detector."""
    hidden = features @ own["features_concat.0.weight"][..., 0].T + own["features_concat.0.bias"]
    normed = batch_norm(
        hidden.flatten(0, 1),
        own["features_concat.1.running_mean"],
        own["features_concat.1.running_var"],
        own["features_concat.1.weight"],
        own["features_concat.1.bias"],
    )
    active = prelu(normed, own["features_concat.2.weight"]).unflatten(0, features.shape[:2])
    return active @ own["features_concat.3.weight"][..., 0].T + own["features_concat.3.bias"]


def test_places(golden_set):
    settings, centers = golden_set.config["vista"], golden_set.inputs["vista.centers"]
    close(pair_places(centers), golden_set, "vista.pairwise_center")
    if "vista.pairwise_unnormalised" in golden_set.expected:
        close(pair_places(centers, normalize=False), golden_set, "vista.pairwise_unnormalised")
    for kind in settings["pairwise_types"]:
        if kind == "vertical_bottom":  # its points lie a whole height below the centre, an official slip
            lowered = centers - golden_set.inputs["vista.sizes"] * torch.tensor([0.0, 0.0, 1.0])
            places = pair_places(centers)
            places[..., 1:3] = pair_places(lowered)[..., 1:3]
            close(places, golden_set, "vista.pairwise_vertical_bottom")


def test_attention_by_places(golden_set, weights):
    settings, given = golden_set.config["vista"], golden_set.inputs
    there = given["vista.padding"] != settings["padding_hidden"]
    for fusion in settings["fusions"]:
        layer = PlaceAttention(settings["d_model"], settings["heads"], fusion)
        layer.load_state_dict(under(weights, f"vista_{fusion}."))
        found, attended = layer.eval().attended(given["vista.x"], golden_set.expected["vista.pairwise_center"], there)
        close(found, golden_set, f"vista.{fusion}.out", "attention")
        close(attended.transpose(0, 1), golden_set, f"vista.{fusion}.attn", "attention")


# Objectives -------------------------------------------------------------------------------------------------------


def test_alignment(golden_set):
    given = golden_set.inputs
    names = ("proposal", "context", "words", "sentence")
    leaves = {name: given[f"align.{name}"].clone().requires_grad_() for name in names}
    labels, scale = given["align.labels"], 1 / given["align.temp"]
    scenes, sentences, objects = labels.shape
    length = leaves["words"].shape[1]

    mentions = torch.zeros(scenes, sentences, objects, length)
    mentions.scatter_(3, given["align.first_obj"][:, :, None, None].expand(-1, -1, objects, 1), labels[..., None])
    everything = torch.ones(scenes, objects, dtype=torch.bool), torch.ones(scenes, sentences, length, dtype=torch.bool)
    words = leaves["words"].unflatten(0, (scenes, sentences))
    found = named_object_losses(words, leaves["proposal"], mentions, *everything, scale)
    word = found.by_word.sum() / (scenes * sentences * length)
    close(word, golden_set, "align.loss_word")

    scene, sentence, place = labels.nonzero(as_tuple=True)
    positive = torch.nn.functional.one_hot(scene * sentences + sentence, scenes * sentences)
    queries = leaves["context"][scene, place]
    losses = info_nce_losses(queries, leaves["sentence"], scale, targets=Weights(positive), normalize=False)
    close(losses.sum() / (scenes * objects), golden_set, "align.loss_sentence")
    total = word + losses.sum() / (scenes * objects)
    close(total, golden_set, "align.loss")
    for name, gradient in zip(names, torch.autograd.grad(total, list(leaves.values())), strict=True):
        close(gradient, golden_set, f"align.grad_{name}", "gradients")


def test_masked_objects(golden_set):
    given = golden_set.inputs
    masked = given["mpm.mask"].bool()
    sentences = given["mpm.proposal_label"].shape[1]
    count = int(masked[0].sum())
    logits = given["mpm.logits"][:, -count:].flatten(0, 1)  # the official order: visible ones first
    classes = torch.stack([row[own] for row, own in zip(given["mpm.class"], masked, strict=True)])
    weights = given["mpm.objectness"][:, None] * given["mpm.proposal_label"]
    weights = torch.stack([row[:, own] for row, own in zip(weights, masked, strict=True)])
    classes = classes[:, None].expand(-1, sentences, -1).flatten()
    losses = cross_entropy(logits, classes, reduction="none") * weights.flatten()
    of_classes = mean_of_chosen(losses, weights.flatten())
    close(of_classes, golden_set, "mpm.cls_loss")
    apart = given["mpm.feat_masked"] - given["mpm.feat_momentum"]  # rows of different objects, an official slip
    close(of_classes + apart[:, -count:].abs().mean(), golden_set, "mpm.cls_plus_moment")


def test_masked_words(golden_set):
    given, settings = golden_set.inputs, golden_set.config["mlm"]
    labels = given["mlm.ids"].flatten(0, 1)[:, : settings["logit_length"]]
    chosen = given["mlm.mask"] > 0
    found = masked_token_losses(given["mlm.logits"][chosen], labels[chosen])
    close(found.mean(), golden_set, "mlm.masked_only")
    everything = masked_token_losses(given["mlm.logits"].flatten(0, 1), labels.flatten())
    for name in ("official", "all_tokens_mean"):  # the official mask comes after the mean, and so changes nothing
        close(everything.mean(), golden_set, f"mlm.{name}")


def test_scenes_and_sentences(golden_set):
    given = golden_set.inputs
    scales = [
        given[f"sv.logit_scale_{which}"].clamp_max(golden_set.config["sv"]["scale_max"]) for which in ("obj", "scene")
    ]
    close(given["sv.logit_scale_obj"], golden_set, "sv.logit_scale_init")
    rows = torch.arange(len(given["sv.obj"]))
    there = given["sv.obj_mask"] == golden_set.config["sv"]["obj_mask_valid"]
    within = [
        info_nce_losses(text[None], objects[own], 1.0, targets=Weights((place == own.nonzero().T).float()))
        for text, objects, own, place in zip(given["sv.text"], given["sv.obj"], there, given["sv.target"], strict=True)
    ]
    close(torch.cat(within).mean(), golden_set, "sv.within")
    referred = given["sv.obj"][rows, given["sv.target"].flatten()]
    close(clip_loss(referred, given["sv.text"], scales[0]), golden_set, "sv.between")
    close(clip_loss(given["sv.scene"], given["sv.scene_text"], scales[1]), golden_set, "sv.scene")
