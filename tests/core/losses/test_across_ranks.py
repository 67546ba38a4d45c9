"""Every loss of the core gives one process's value and gradients on 1, 2 and 3 real ranks, even and uneven."""

import pytest
import torch

from collimate import distributed
from collimate.losses import (
    Mixture,
    Paired,
    SharedLabels,
    Similarities,
    Softened,
    Weights,
    clip_loss,
    cwcl_loss,
    info_nce,
    siglip_loss,
    sigmoid_contrast,
    supcon_loss,
    symmetric_info_nce,
)
from collimate.testing import assert_same_on_ranks, even_and_uneven, run_on_ranks

BATCH, WIDTH = 13, 6


def rows(**further):
    draw = torch.Generator().manual_seed(0)
    image, text = torch.randn(2, BATCH, WIDTH, generator=draw)
    return {"image": image, "text": text + image, **further}


def labels():
    return torch.arange(BATCH) % 4


SCALE = {"scale": torch.tensor(9.0)}
BIASED = {"scale": torch.tensor(9.0), "bias": torch.tensor(-3.0)}


def clip(image, text, scale):
    return clip_loss(image, text, scale)


def clip_in_float64(image, text, scale):
    return clip_loss(image.double(), text.double(), scale)


def clip_with_ids(image, text, labels, scale):
    return clip_loss(image, text, scale, ids=labels)


def clip_with_pair_weights(image, text, weights, scale):
    return clip_loss(image, text, scale, weights=weights)


def clip_with_queues(image, text, scale, image_queue, text_queue):
    return clip_loss(image, text, scale, queue=text_queue, query_queue=image_queue)


def shared_labels(image, text, labels, scale):
    return symmetric_info_nce(image, text, scale, targets=SharedLabels(labels, labels))


def softened(image, text, image_teacher, text_teacher, scale):
    return symmetric_info_nce(
        image, text, scale, targets=Mixture(Softened(image_teacher, text_teacher, 4.0), Paired(), 0.4)
    )


def similarities(image, text, image_teacher, text_teacher, scale):
    return symmetric_info_nce(image, text, scale, targets=Similarities(image_teacher, text_teacher))


def dense_weights(image, text, weight_rows, weight_columns, scale):
    return symmetric_info_nce(image, text, scale, targets=Weights(weight_rows, weight_columns))


def masked_one_way(image, text, mask, scale):
    return info_nce(image, text, scale, mask=mask)


def supervised(image, text, labels, scale):
    return supcon_loss(torch.stack([image, text], 1), labels, temperature=1 / scale)


def supervised_by_weights(image, text, weight_rows, scale):
    features = torch.stack([image, text], 1)
    return supcon_loss(features, pair_weights=weight_rows.detach(), temperature=1 / scale, anchors="first")


def cwcl(image, text, image_teacher, scale):
    return cwcl_loss(image, text, scale, teacher=image_teacher.detach())


def siglip(image, text, scale, bias):
    return siglip_loss(image, text, scale, bias)


def siglip_with_ids_and_weights(image, text, labels, weights, scale, bias):
    return siglip_loss(image, text, scale, bias, ids=labels, weights=weights)


def siglip_with_labels(image, text, labels, scale, bias):
    return sigmoid_contrast(image, text, scale, bias, targets=SharedLabels(labels, labels))


def teachers():
    draw = torch.Generator().manual_seed(1)
    return dict(zip(("image_teacher", "text_teacher"), torch.randn(2, BATCH, 5, generator=draw), strict=True))


def dense():
    weights = torch.rand(BATCH, BATCH, generator=torch.Generator().manual_seed(2))
    return {"weight_rows": weights, "weight_columns": weights.T.contiguous()}


def queues():
    draw = torch.Generator().manual_seed(4)
    return {name: torch.randn(size, WIDTH, generator=draw) for name, size in (("image_queue", 7), ("text_queue", 9))}


def mask():
    kept = torch.rand(BATCH, BATCH, generator=torch.Generator().manual_seed(3)) > 0.4
    return kept | torch.eye(BATCH, dtype=torch.bool)


CASES = {
    clip: (rows(), SCALE),
    clip_in_float64: (rows(), SCALE),
    clip_with_ids: (rows(labels=labels()), SCALE),
    clip_with_pair_weights: (rows(weights=torch.linspace(0.1, 2, BATCH)), SCALE),
    clip_with_queues: (rows(), SCALE | queues()),
    shared_labels: (rows(labels=labels()), SCALE),
    softened: (rows(**teachers()), SCALE),
    similarities: (rows(**teachers()), SCALE),
    dense_weights: (rows(**dense()), SCALE),
    masked_one_way: (rows(mask=mask()), SCALE),
    supervised: (rows(labels=labels()), SCALE),
    supervised_by_weights: (rows(weight_rows=dense()["weight_rows"]), SCALE),
    cwcl: (rows(image_teacher=teachers()["image_teacher"]), SCALE),
    siglip: (rows(), BIASED),
    siglip_with_ids_and_weights: (rows(labels=labels(), weights=torch.linspace(0.1, 2, BATCH)), BIASED),
    siglip_with_labels: (rows(labels=labels()), BIASED),
}


@pytest.mark.parametrize("loss", CASES, ids=lambda loss: loss.__name__)
def test_value_and_gradients_are_those_of_one_process(loss):
    batch, shared = CASES[loss]
    assert_same_on_ranks(loss, batch, shared, tolerance=1e-5)


def in_bfloat16(image, text, scale):
    return clip_loss(image.bfloat16(), text.bfloat16(), scale)


def test_bfloat16_features_agree_across_ranks():
    assert_same_on_ranks(in_bfloat16, rows(), SCALE, ranks=(2,), tolerance=1e-2)


def test_an_empty_rank_is_exact():
    assert_same_on_ranks(clip, rows(), SCALE, splits=[[BATCH, 0], [0, 6, BATCH - 6]])
    assert_same_on_ranks(siglip, rows(), BIASED, splits=[[BATCH, 0], [0, 6, BATCH - 6]])


def alone(image, text, scale):
    return clip_loss(image, text, scale, group=distributed.LOCAL).item()


def test_the_local_group_contrasts_each_rank_on_its_own():
    batch = rows()
    parts = [(batch["image"][s], batch["text"][s], SCALE["scale"]) for s in (slice(0, 5), slice(5, BATCH))]
    found = run_on_ranks(alone, parts)
    torch.testing.assert_close(found, [clip_loss(*part).item() for part in parts])


def gradient_of_own_loss(image, text, scale, factor):
    image.requires_grad_()
    (clip_loss(image, text, scale) * factor).backward()
    return image.grad


def test_ranks_may_weigh_their_softmax_losses_differently():
    batch, factors, split = rows(), (2.0, 0.5, 3.0), even_and_uneven(BATCH, 3)[1]
    parts = zip(batch["image"].split(split), batch["text"].split(split), factors, strict=True)
    found = run_on_ranks(gradient_of_own_loss, [(i, t, SCALE["scale"], f) for i, t, f in parts])
    image = batch["image"].requires_grad_()
    weights = torch.cat([torch.full((n,), f) for n, f in zip(split, factors, strict=True)])
    clip_loss(image, batch["text"], SCALE["scale"], weights=weights).backward()
    torch.testing.assert_close(torch.cat(found) / len(split), image.grad, rtol=1e-4, atol=1e-6)


def siglip_gradient(image, text, scale, factor):
    image.requires_grad_()
    (siglip_loss(image, text, scale, -3.0) * factor).backward()


def test_ranks_that_weigh_their_sigmoid_losses_differently_are_told():
    batch = rows()
    parts = zip(batch["image"].split([6, 7]), batch["text"].split([6, 7]), (1.0, 2.0), strict=True)
    with pytest.raises(RuntimeError, match="different factors"):
        run_on_ranks(siglip_gradient, [(i, t, SCALE["scale"], f) for i, t, f in parts])
