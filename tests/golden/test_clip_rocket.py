"""clip-rocket's contrast and its terms without negatives against the released losses."""

from collimate.losses import balanced_assignments, clip_loss, swapped_assignment_loss
from collimate_vision_language.clip_rocket.losses import local_to_local_losses, swapped_view_loss
from collimate_vision_language.clip_rocket.terms import barlow_of_views, prediction_of_views

GOLDEN = "clip_rocket"


def views(golden_set, kind):
    """Pictures' and texts' tensors of a kind, the weak view first where it has one."""
    inputs, count = golden_set.inputs, golden_set.config["number_of_augmentations"]
    return [
        [inputs[name] for name in (f"{kind}_{of}", *(f"{kind}_{of}_local_{i}" for i in range(count))) if name in inputs]
        for of in ("image", "text")
    ]


def contrast(golden_set, smoothing):
    """The loss that most cases share, and its parts by their names."""
    inputs = golden_set.inputs
    weak = inputs["z_image_global"], inputs["z_text_global"]
    scales = inputs["logit_scale"], inputs["h_logit_scale"]
    found = local_to_local_losses(*weak, *views(golden_set, "h"), *scales, smoothing)
    return found.loss, {
        "clip_loss": found.loss,
        "clip_loss_image": found.image,
        "clip_loss_image_global": found.image_global,
        "clip_loss_image_local": found.image_local,
        "clip_loss_text": found.text,
        "clip_loss_text_global": found.text_global,
        "clip_loss_text_local": found.text_local,
    }


def test_clip_rocket(golden_set, case):
    settings, inputs = golden_set.cases[case], golden_set.inputs
    if case == "sinkhorn":
        how = settings["epsilon"], settings["sinkhorn_iterations"]
        for given, expected in zip(settings["inputs"], settings["expected"], strict=True):
            golden_set.compare({expected: balanced_assignments(inputs[given], *how)})
        return
    if case in ("clip", "swalip_v1"):
        loss = clip_loss(inputs["z_image_global"], inputs["z_text_global"], inputs["logit_scale"])
        found = {"clip_loss": loss, "loss": loss}
        if case == "swalip_v1":
            logits = inputs["prototype_logits_image"], inputs["prototype_logits_text"]
            how = settings["logit_scale"], settings["epsilon"], settings["sinkhorn_iterations"]
            found["swalip_loss"] = swapped_assignment_loss(*logits, *how)
            found["loss"] = loss + settings["weight"] * found["swalip_loss"]
        golden_set.compare_all(f"{case}__", found)
        return
    loss, found = contrast(golden_set, settings["label_smoothing"])
    if settings["loss_avg_or_sum"] == "sum":
        loss = 2 * loss
    extra = None
    if case == "barlip":
        extra = barlow_of_views(*views(golden_set, "v"), settings["lambda_"], settings["scale"])
        found["barlip_loss"] = extra
    elif case == "siamlip":
        extra = prediction_of_views(*views(golden_set, "p"), *views(golden_set, "v"))
        found["siamlip_loss"] = extra
    elif case == "swalip":
        how = settings["epsilon"], settings["sinkhorn_iterations"]
        extra = swapped_view_loss(*views(golden_set, "h"), inputs["h_logit_scale"], *how)
        found["swalip_loss"] = extra
        extra = settings["weight"] * extra
    found["loss"] = loss if extra is None else loss + extra
    golden_set.compare_all(f"{case}__", found)
