"""Contrastive losses against open_clip's, forward and backward, as users call them (normalise, then loss).

    uv run python -m tools.bench.loss                  # both losses at B = 4096 and 16384, then B = 2k..64k of ours
    uv run python -m tools.bench.loss --device cuda    # up to B = 65536, D = 768

Time: medians of interleaved calls in one process. Memory: growth of the peak of a fresh process over its state with
the features in place, so the gradients of the features are counted and the features are not.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from open_clip.loss import ClipLoss, SigLipLoss
from torch import Tensor
from torch.nn.functional import normalize

from collimate.losses import clip_loss, siglip_loss
from tools.bench import _harness

OURS, PEER = "collimate", "open_clip"


def step(loss: str, whose: str, batch: int, width: int, device: str) -> Callable[[], None]:
    """One forward and backward pass on random pairs."""
    torch.manual_seed(0)
    image, text = (torch.randn(batch, width, device=device, requires_grad=True) for _ in range(2))
    scale = torch.tensor(1 / 0.07 if loss == "clip" else 10.0, device=device, requires_grad=True)
    bias = torch.tensor(-10.0, device=device, requires_grad=True)
    peers = {"clip": ClipLoss(), "siglip": SigLipLoss()}
    contrast: dict[tuple[str, str], Callable[[], Tensor]] = {
        ("clip", OURS): lambda: clip_loss(image, text, scale),
        ("siglip", OURS): lambda: siglip_loss(image, text, scale, bias),
        ("clip", PEER): lambda: peers["clip"](normalize(image, dim=-1), normalize(text, dim=-1), scale),
        ("siglip", PEER): lambda: peers["siglip"](normalize(image, dim=-1), normalize(text, dim=-1), scale, bias),
    }

    def run() -> None:
        for leaf in (image, text, scale, bias):
            leaf.grad = None
        contrast[loss, whose]().backward()

    return run


def compare(loss: str, batch: int, width: int, device: str, repeats: int) -> dict:
    """Time and memory of both, and our share of the peer's."""
    steps = {whose: step(loss, whose, batch, width, device) for whose in (OURS, PEER)}
    seconds = _harness.interleaved(steps, repeats)
    del steps
    mib = {whose: memory(loss, whose, batch, width, device) / 2**20 for whose in (OURS, PEER)}
    return {
        "loss": loss,
        "B": batch,
        "D": width,
        f"{OURS} s": seconds[OURS],
        f"{PEER} s": seconds[PEER],
        "time ratio": seconds[OURS] / seconds[PEER],
        f"{OURS} MiB": mib[OURS],
        f"{PEER} MiB": mib[PEER],
        "memory ratio": mib[OURS] / mib[PEER],
    }


def scale_up(loss: str, batch: int, width: int, device: str) -> dict:
    """Time and memory of ours alone, for batches where the dense loss does not fit."""
    seconds = _harness.interleaved({OURS: step(loss, OURS, batch, width, device)}, repeats=1, warm_up=0)
    mib = memory(loss, OURS, batch, width, device) / 2**20
    return {
        "loss": loss,
        "B": batch,
        "D": width,
        f"{OURS} s": seconds[OURS],
        f"{OURS} MiB": mib,
        "ns per pair": seconds[OURS] / batch**2 * 1e9,
        "KiB per sample": mib / batch * 1024,
    }


def memory(loss: str, whose: str, batch: int, width: int, device: str) -> int:
    return _harness.extra_peak_memory("tools.bench.loss", "--measure", loss, whose, str(batch), str(width), device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--width", type=int, help="512, and 768 on a GPU")
    parser.add_argument("--batches", type=int, nargs="+", help="batches to compare at")
    parser.add_argument("--scaling", type=int, nargs="*", help="batches to run ours alone at")
    parser.add_argument("--measure", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        loss, whose, batch, width, device = options.measure
        step(loss, whose, 64, int(width), device)()  # libraries load and thread pools start before the measurement
        run = step(loss, whose, int(batch), int(width), device)
        print(_harness.peak_growth(run))
        return
    cuda = options.device != "cpu"
    width = options.width or (768 if cuda else 512)
    batches = options.batches or ([16384, 32768, 65536] if cuda else [4096, 16384])
    scaling = options.scaling if options.scaling is not None else [2048, 4096, 8192, 16384, 32768, 65536]
    name = "loss_cuda" if cuda else "loss"
    compared = [
        compare(loss, batch, width, options.device, repeats=7 if cuda or batch < 8192 else 1)
        for loss in ("clip", "siglip")
        for batch in batches
    ]
    _harness.report(name, compared, width=width)
    if scaling:
        _harness.report(f"{name}_scaling", [scale_up("clip", b, width, options.device) for b in scaling], width=width)


if __name__ == "__main__":
    main()
