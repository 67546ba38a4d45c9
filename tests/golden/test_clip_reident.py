"""The contrast of two pictures of one identity, with label smoothing, against CLIP-ReIdent's."""

from collimate.losses import Paired, Smoothed, clip_loss

GOLDEN = "clip_reident"


def test_clip_reident(golden_set):
    inputs = golden_set.inputs
    query = inputs["query"].clone().requires_grad_()
    targets = Smoothed(Paired(), inputs["label_smoothing"].item())
    loss = clip_loss(query, inputs["gallery"], inputs["logit_scale"], targets=targets)
    loss.backward()
    golden_set.compare_all("", {"loss": loss, "grad_query": query.grad})
