"""TCL against the official code: a step of pre-training on one rank and on two, and a step of fine-tuning."""

from contextlib import contextmanager

import torch
from safetensors.torch import load_file
from torch.nn.functional import normalize

from collimate.losses import Mixture, Softened
from collimate.losses.matching import matching_loss, negative_weights
from collimate.processing import ImageProcessor, Tokenizer
from collimate.testing import run_on_ranks
from collimate_vision_language.tcl import TCL
from collimate_vision_language.tcl.official import named

TERMS = {"loss_i2t": "i2t", "loss_t2i": "t2i", "loss_i2i": "i2i", "loss_t2t": "t2t"}
TERMS |= {"loss_i2i_local": "i2i_local", "loss_t2t_local": "t2t_local"}


class Ids(Tokenizer):
    """Texts that are ids already, padded with 0."""

    pad_id, mask_id, end_id = 0, 4, 3

    def mask(self, batch):
        return batch != self.pad_id


def released(config, weights, alpha, distill=True):
    return TCL.from_official(
        weights,
        ImageProcessor(config["image_res"]),
        Ids(),
        image_heads=config["vit"]["num_heads"],
        text_heads=config["bert"]["num_attention_heads"],
        dropout=config["bert"]["hidden_dropout_prob"],
        momentum=config["momentum"],
        alpha=alpha if distill else 0.0,
        local_grid=config.get("local_grid") or int((config["image_res"] // config["patch_size"]) ** 0.5),
        temperature_bounds=config["temp_clamp"],
    ).train()


def batch_of(inputs, rank=None):
    names = {
        "image": "image", "image_aug": "image_view", "input_ids": "text", "image_id": "id",
        "recorded_neg_image_index": "negative_image", "recorded_neg_text_index": "negative_text",
        "recorded_mlm_input_ids": "masked_text", "recorded_mlm_labels": "masked_labels",
    }  # fmt: skip
    batch = {ours: inputs[theirs] for theirs, ours in names.items() if theirs in inputs}
    return batch if rank is None else {name: value[rank] for name, value in batch.items()}


@contextmanager
def recorded_logits(module):
    """What a module gives while this is open."""
    found = []
    handle = module.register_forward_hook(lambda module, inputs, output: found.append(output))
    yield found
    handle.remove()


def losses_of(method, terms):
    contrast = {theirs: method.statistics[f"contrast/{ours}"] for theirs, ours in TERMS.items()}
    found = {**contrast, "loss_ita": terms["cma"] + terms["imc"] + terms["lmi"], "loss_itm": terms["itm"]}
    return found | ({"loss_mlm": terms["mlm"], "loss_total": method.total_loss(terms)} if "mlm" in terms else {})


def similarities(method, embeddings, batch):
    """Features, logits and targets of the step; `queue` and copies are those before it."""
    scale = 1 / method.temp.detach()
    features, keys, entries = {}, {}, {}
    for name in ("image", "text"):
        features[name] = normalize(embeddings[name], dim=1)
        keys[name] = normalize(embeddings[f"{name}_key"], dim=1)
        entries[name] = torch.cat([keys[name], method.queue[name]])
    found = {
        "image_feat": features["image"],
        "text_feat": features["text"],
        "image_feat_m": keys["image"],
        "text_feat_m": keys["text"],
        "image_local_m": embeddings["image_local"],
        "text_local_m": embeddings["text_local"],
        "image_tokens": embeddings["image_tokens"],
        "text_tokens": embeddings["text_tokens"],
    }
    ids, every = batch.get("id"), torch.eye(len(entries["image"]))
    positives = method._positives(ids, len(features["image"]))

    def targets_of(relation):
        blended, mass = relation.blend(every, (len(every),))
        return blended / mass[:, None]

    found["sim_targets"] = targets_of(positives)
    for letter, query in (("i", "image"), ("t", "text")):
        for other, key in (("i", "image"), ("t", "text")):
            found[f"sim_{letter}2{other}"] = scale * features[query] @ entries[key].T
            soft = Mixture(Softened(keys[query], entries[key], scale), positives, method.alpha)
            found[f"sim_{letter}2{other}_targets"] = targets_of(soft)
    count = len(features["image"])
    found["neg_weights_image_for_text"] = negative_weights(found["sim_t2i"][:, :count], ids)
    found["neg_weights_text_for_image"] = negative_weights(found["sim_i2t"][:, :count], ids)
    return found


def state_after(method):
    return {
        "image_queue_after": method.queue["image"].T,
        "text_queue_after": method.queue["text"].T,
        "idx_queue_after": method.queue.ids[None],
        "queue_ptr_after": (method.queue.added % method.queue.size)[None],
        "ema_after__vision_proj_m_weight": method.momentum_projections["image"].linear.weight,
        "ema_after__text_proj_m_weight": method.momentum_projections["text"].linear.weight,
        "temp_after_clamp": method.temp,
        "temp_after": method.temp,
    }


def token_logits(method, batch, which):
    """The logits of the vocabulary at every place of the masked texts, by the trained BERT or its copy."""
    towers, view = (method.encoders, "image") if which == "online" else (method.momentum_encoders, "image_view")
    mask = method.processors["text"].mask(batch["text"])
    bert = towers["text"]
    fused = bert.fuse(bert(batch["masked_text"], mask), towers["image"](batch[view]).pooled_first())
    return bert.token_logits(fused.tokens)


def test_a_step_of_pre_training(golden):
    found_set = golden("tcl/pretrain_forward")
    weights = load_file(found_set.folder / "weights.safetensors")
    method = released(found_set.config, weights, float(found_set.inputs["alpha"]))
    batch = batch_of(found_set.inputs)
    image = batch["image"] = batch["image"].clone().requires_grad_()
    embeddings = method.embed(batch)
    found = similarities(method, embeddings, batch)
    with recorded_logits(method.itm_head) as logits:
        terms = method.losses(embeddings, batch)
    found |= losses_of(method, terms) | {"itm_logits": logits[0]}
    labels = found_set.expected["itm_labels"]
    found["itm_labels"] = labels if matching_loss(logits[0], int(labels.sum())) == terms["itm"] else -labels
    total = method.total_loss(terms)
    wanted = [name.removeprefix("grad__") for name in found_set.expected if name.startswith("grad__")]
    ours = [next(iter(named({name: torch.zeros(1)}))) for name in wanted if name != "image"]
    leaves = [image, *(method.get_parameter(name) for name in ours)]
    gradients = torch.autograd.grad(total, leaves)
    found |= {
        f"grad__{name}": g for name, g in zip(["image", *(n for n in wanted if n != "image")], gradients, strict=True)
    }
    found |= {"mlm_logits": token_logits(method, batch, "online")}
    found |= {"mlm_logits_momentum": token_logits(method, batch, "momentum")}
    found_set.compare_all("", found | state_after(method))


def test_a_step_of_fine_tuning(golden):
    found_set = golden("tcl/retrieval_forward")
    weights = load_file(found_set.folder / "weights.safetensors")
    inputs = found_set.inputs
    method = released(found_set.config, weights, float(inputs["alpha"]), bool(inputs["distill"]))
    assert method.image_ids
    assert method.mask_rate == 0
    batch = batch_of(inputs)
    embeddings = method.embed(batch)
    found = similarities(method, embeddings, batch)
    with recorded_logits(method.itm_head) as logits:
        found |= losses_of(method, method.losses(embeddings, batch))
    found_set.compare_all("", found | state_after(method) | {"itm_logits": logits[0]})


def step_on_a_rank(config, weights, alpha, batch):
    method = released(config, weights, alpha)
    terms = method.loss_terms(batch)
    six = torch.stack([method.statistics[f"contrast/{ours}"] for ours in TERMS.values()])
    found = losses_of(method, {name: term.detach() for name, term in terms.items()})
    return found | {"six_contrastive_terms": six}, {name: value.detach() for name, value in state_after(method).items()}


def test_a_step_on_two_ranks(golden):
    found_set = golden("tcl/two_ranks")
    config, inputs = found_set.config, found_set.inputs
    weights = load_file(found_set.folder / config["weights_from"])
    weights |= {name: inputs[name] for name in config["replaced_by_inputs"]}
    jobs = [(config, weights, float(inputs["alpha"]), batch_of(inputs, rank)) for rank in range(config["world_size"])]
    found = run_on_ranks(step_on_a_rank, jobs)
    losses = {name: torch.stack([each[name] for each, _ in found]) for name in found[0][0]}
    assert list(TERMS) == config["six_contrastive_terms"]
    for _, state in found:
        found_set.compare_all("", losses | state)
        assert all(torch.equal(value, found[0][1][name]) for name, value in state.items())
