"""supcon_loss against the official SupConLoss."""

from collimate.losses import supcon_loss

GOLDEN = "supcon"


def test_supcon(golden_set, case):
    settings, inputs = golden_set.cases[case], golden_set.inputs
    features = inputs[settings["features"]].clone().requires_grad_()
    loss = supcon_loss(
        features,
        inputs[settings["labels"]] if settings["kind"] == "labels" else None,
        pair_weights=inputs[settings["mask"]] if settings["kind"] == "mask" else None,
        temperature=inputs[f"temperature__{case}"],
        base_temperature=inputs[f"base_temperature__{case}"],
        anchors={"all": "all", "one": "first"}[settings["contrast_mode"]],
        normalize=not golden_set.config["inputs_normalized"],
    )
    loss.backward()
    golden_set.compare({f"loss__{case}": loss, f"grad__{case}": features.grad})
