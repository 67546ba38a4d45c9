"""TCL's local term against the released code's form, alone and within all contrastive terms of a step.

    uv run python -m tools.bench.tcl_local                  # N = 64 to 512
    uv run python -m tools.bench.tcl_local --device cuda

The released form repeats the logits of each sample's negatives once for each of its locals and takes a softmax of
N x L x (1 + N L) numbers. "step" is the forward and backward pass of all six terms with a queue, from the towers'
features on; there the released form of the other four takes log-softmaxes of N x (N + Q) numbers.

Time: medians of interleaved calls in one process. Memory of the local terms: growth of the peak of a fresh process over
its state with the features in place.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize

from collimate.losses import Leading, local_to_global_loss
from collimate_vision_language.tcl.alignment import Locals, Pair, alignment_losses
from tools.bench import _harness

OURS, RELEASED = "collimate", "released form"
PATCHES, WORDS, WIDTH, QUEUE, ALPHA = 16, 24, 256, 65536, 0.4  # as published: 4 x 4 windows, 25 tokens without [CLS]


def released_local(features: Tensor, local_features: Tensor, scale: Tensor, mask: Tensor) -> Tensor:
    """The released form, with its sums of 10000 in the place of masks."""
    samples, count, width = local_features.shape
    positives = scale * local_features @ features[:, :, None]
    negatives = (scale * features @ local_features.reshape(-1, width).T).view(samples, samples, count)
    kept = (~torch.eye(samples, dtype=torch.bool, device=mask.device)[:, :, None] & mask).to(features.dtype)
    negatives = (negatives * kept - 10000 * (1 - kept)).view(samples, 1, samples * count)
    positives = positives * mask[..., None] + 10000 * ~mask[..., None]
    logits = torch.cat([positives, negatives.expand(-1, count, -1)], 2)
    losses = -logits.log_softmax(2)[:, :, 0]
    return (losses.sum(1) / mask.sum(1)).mean()


def released_terms(features: Pair, momentum: Pair, keys: Pair, local: Locals, scale: Tensor) -> Tensor:
    """The mean of the six terms in the released form."""
    own = torch.eye(len(features.image), len(keys.image), device=scale.device)

    def contrast(query: Tensor, others: Tensor, teacher: Tensor | None) -> Tensor:
        targets = own
        if teacher is not None:
            with torch.no_grad():
                targets = ALPHA * (scale * teacher @ others.T).softmax(1) + (1 - ALPHA) * own
        return -((scale * query @ others.T).log_softmax(1) * targets).sum(1).mean()

    everywhere = torch.ones(local.image.shape[:2], dtype=torch.bool, device=scale.device)
    terms = [
        contrast(features.image, keys.text, momentum.image),
        contrast(features.text, keys.image, momentum.text),
        contrast(features.image, keys.image, None),
        contrast(features.text, keys.text, None),
        released_local(features.image, local.image, scale, everywhere),
        released_local(features.text, local.text, scale, local.text_mask),
    ]
    return torch.stack(terms).mean()


def step(what: str, whose: str, samples: int, device: str) -> Callable[[], Tensor]:
    """One forward and backward pass of the two local terms, or of all six, on random features; gives the loss."""
    torch.manual_seed(0)

    def unit(*shape: int) -> Tensor:
        return normalize(torch.randn(*shape, WIDTH, device=device), dim=-1)

    image, text = (unit(samples).requires_grad_() for _ in range(2))
    scale = torch.tensor(1 / 0.07, device=device, requires_grad=True)
    lengths = torch.randint(8, WORDS + 1, (samples, 1), device=device)
    words = torch.arange(WORDS, device=device) < lengths
    local = Locals(unit(samples, PATCHES), unit(samples, WORDS), words)
    everywhere = torch.ones(samples, PATCHES, dtype=torch.bool, device=device)
    momentum, queue = (Pair(unit(count), unit(count)) for count in (samples, QUEUE if what == "step" else 1))

    def ours_all() -> Tensor:
        keys = Pair(*(torch.cat(both) for both in zip(momentum, queue, strict=True)))
        features = Pair(image, text)
        return sum(alignment_losses(features, momentum, keys, local, scale, Leading(samples), ALPHA)) / 6  # type: ignore

    def released_all() -> Tensor:
        keys = Pair(*(torch.cat(both) for both in zip(momentum, queue, strict=True)))
        return released_terms(Pair(image, text), momentum, keys, local, scale)

    losses: dict[tuple[str, str], Callable[[], Tensor]] = {
        ("local", OURS): lambda: (
            local_to_global_loss(image, local.image, scale) + local_to_global_loss(text, local.text, scale, words)
        ),
        ("local", RELEASED): lambda: (
            released_local(image, local.image, scale, everywhere) + released_local(text, local.text, scale, words)
        ),
        ("step", OURS): ours_all,
        ("step", RELEASED): released_all,
    }

    def run() -> Tensor:
        for leaf in (image, text, scale):
            leaf.grad = None
        loss = losses[what, whose]()
        loss.backward()
        return loss.detach()

    return run


def compare(what: str, samples: int, device: str, repeats: int) -> dict:
    """Time and memory of both, and our share of the released form's."""
    steps = {whose: step(what, whose, samples, device) for whose in (OURS, RELEASED)}
    torch.testing.assert_close(steps[OURS](), steps[RELEASED](), rtol=1e-4, atol=1e-5)
    seconds = _harness.interleaved(steps, repeats)
    del steps
    row: dict = {"terms": what, "N": samples, f"{OURS} s": seconds[OURS], f"{RELEASED} s": seconds[RELEASED]}
    row["times as fast"] = seconds[RELEASED] / seconds[OURS]
    if what == "local":  # in a step, the queue's logits outweigh those of the local terms
        mib = {whose: memory(whose, samples, device) / 2**20 for whose in (OURS, RELEASED)}
        row |= {f"{OURS} MiB": mib[OURS], f"{RELEASED} MiB": mib[RELEASED], "memory ratio": mib[OURS] / mib[RELEASED]}
    return row


def memory(whose: str, samples: int, device: str) -> int:
    """Bytes by which the peak of a fresh process grows in one pass of the local terms."""
    return _harness.extra_peak_memory("tools.bench.tcl_local", "--measure", whose, str(samples), device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 128, 256, 512], help="samples to compare at")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        whose, samples, device = options.measure
        step("local", whose, 8, device)()  # libraries load and thread pools start before the measurement
        run = step("local", whose, int(samples), device)
        print(_harness.peak_growth(run))
        return
    cuda = options.device != "cpu"
    rows = [
        compare(what, samples, options.device, repeats=_repeats(what, samples, cuda))
        for what in ("local", "step")
        for samples in options.batches
    ]
    settings = {"patches": PATCHES, "words": WORDS, "width": WIDTH, "queue": QUEUE}
    _harness.report("tcl_local_cuda" if cuda else "tcl_local", rows, **settings)


def _repeats(what: str, samples: int, cuda: bool) -> int:
    """More for what takes milliseconds, where each is at the mercy of the machine."""
    if what == "local" and samples < 256:
        return 31
    return 7 if cuda or samples < 256 else 3


if __name__ == "__main__":
    main()
