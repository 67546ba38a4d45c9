"""The FILIP loss against its plain form, forward and backward, as users call them (normalise, then loss).

    uv run python -m tools.bench.filip                  # B = 64 and 128, float32, then ours alone up to B = 512
    uv run python -m tools.bench.filip --device cuda    # B = 256, 512 and 1024, bfloat16

The plain form multiplies all tokens with one einsum and takes both maxima of the product: with `amax`, as public code
does (lucidrains/x-clip), which shares the gradient among equal maxima, and with the leaner `max`, which keeps places.

Time: medians of interleaved calls in one process. Memory: growth of the peak of a fresh process over its state with
the tokens in place, and as "loss MiB" without the gradients of the tokens, which any loss must hand over.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from collimate.losses import filip_loss
from tools.bench import _harness

OURS, AMAX, MAX = "collimate", "plain amax", "plain max"
PATCHES, WORDS, WIDTH = 196, 32, 256
DTYPES = {"cpu": torch.float32, "cuda": torch.bfloat16}


def plain_loss(
    image: Tensor, text: Tensor, scale: Tensor, text_mask: Tensor, highest: Callable[[Tensor, int], Tensor]
) -> Tensor:
    """The equation written out, over all products at once."""
    products = torch.einsum("ipd,jld->ijpl", normalize(image, dim=-1), normalize(text, dim=-1))
    by_image = highest(products.masked_fill(~text_mask[None, :, None], -torch.inf), 3).float().mean(2)
    by_text = (highest(products, 2).float() * text_mask).sum(2) / text_mask.sum(1)
    pairs = torch.arange(len(image), device=image.device)
    return (cross_entropy(scale * by_image, pairs) + cross_entropy(scale * by_text.T, pairs)) / 2


def step(whose: str, batch: int, device: str, full: bool = True) -> Callable[[], None]:
    """One forward and backward pass on random pairs; texts all of full length, or of 3 to all words."""
    torch.manual_seed(0)
    image, text = (
        torch.randn(batch, tokens, WIDTH, device=device, dtype=DTYPES[device], requires_grad=True)
        for tokens in (PATCHES, WORDS)
    )
    lengths = torch.full((batch, 1), WORDS) if full else torch.randint(3, WORDS + 1, (batch, 1))
    mask = torch.arange(WORDS, device=device) < lengths.to(device)
    scale = torch.tensor(1 / 0.07, device=device, requires_grad=True)
    losses: dict[str, Callable[[], Tensor]] = {
        OURS: lambda: filip_loss(image, text, scale, text_mask=mask),
        AMAX: lambda: plain_loss(image, text, scale, mask, lambda products, dim: products.amax(dim)),
        MAX: lambda: plain_loss(image, text, scale, mask, lambda products, dim: products.max(dim).values),
    }

    def run() -> None:
        for leaf in (image, text, scale):
            leaf.grad = None
        losses[whose]().backward()

    return run


def compare(batch: int, device: str, repeats: int, full: bool) -> dict:
    """Time and memory of all, and our shares of the plain forms'."""
    seconds = _harness.interleaved({whose: step(whose, batch, device, full) for whose in (OURS, AMAX, MAX)}, repeats)
    mib = {whose: memory(whose, batch, device) / 2**20 for whose in (OURS, AMAX, MAX)} if full else {}
    row: dict = {"B": batch, "texts": "full" if full else "ragged"}
    for whose in (OURS, AMAX, MAX):
        row[f"{whose} s"] = seconds[whose]
        if full:
            row[f"{whose} MiB"] = mib[whose]
            row[f"{whose} loss MiB"] = mib[whose] - gradients(batch, device)
    for plain in (AMAX, MAX):
        row[f"time / {plain}"] = seconds[OURS] / seconds[plain]
        if full:
            row[f"memory / {plain}"] = mib[OURS] / mib[plain]
            row[f"loss memory / {plain}"] = row[f"{OURS} loss MiB"] / row[f"{plain} loss MiB"]
    return row


def scale_up(batch: int, device: str) -> dict:
    """Time and memory of ours alone, where the plain form does not fit."""
    seconds = _harness.interleaved({OURS: step(OURS, batch, device)}, repeats=1, warm_up=0)
    mib = memory(OURS, batch, device) / 2**20
    return {"B": batch, f"{OURS} s": seconds[OURS], f"{OURS} MiB": mib, "us per pair": seconds[OURS] / batch**2 * 1e6}


def gradients(batch: int, device: str) -> float:
    """MiB of the tokens' gradients."""
    return batch * (PATCHES + WORDS) * WIDTH * DTYPES[device].itemsize / 2**20


def memory(whose: str, batch: int, device: str) -> int:
    return _harness.extra_peak_memory("tools.bench.filip", "--measure", whose, str(batch), device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=DTYPES)
    parser.add_argument("--batches", type=int, nargs="+", help="batches to compare at")
    parser.add_argument("--scaling", type=int, nargs="*", help="batches to run ours alone at")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        whose, batch, device = options.measure
        step(whose, 8, device)()  # libraries load and thread pools start before the measurement
        run = step(whose, int(batch), device)
        print(_harness.peak_growth(run))
        return
    cuda = options.device == "cuda"
    batches = options.batches or ([256, 512, 1024] if cuda else [64, 128])
    scaling = options.scaling if options.scaling is not None else ([2048] if cuda else [256, 512])
    name = "filip_cuda" if cuda else "filip"
    settings = {"P": PATCHES, "L": WORDS, "D": WIDTH, "dtype": str(DTYPES[options.device])}
    rows = [compare(batch, options.device, options.repeats, full) for batch in batches for full in (True, False)]
    _harness.report(name, rows, **settings)
    if scaling:
        _harness.report(f"{name}_scaling", [scale_up(batch, options.device) for batch in scaling], **settings)


if __name__ == "__main__":
    main()
