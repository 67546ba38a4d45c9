"""Vectors of the regions of a picture: CLOC's prompts after one look, against one look at each crop.

    uv run python -m tools.bench.cloc_prompt                  # ViT-B/16 at 224 pixels, 1 to 32 regions
    uv run python -m tools.bench.cloc_prompt --device cuda

Both are whole: "prompts" is the picture through the tower and R boxes through the prompter, "crops" R pictures through
the same tower in one batch. "look" is the tower alone on one picture: in looks, R prompts should cost one. Beside them
the prompter as it is written down, a transformer layer over prompt and picture for each region, after the same look.
Weights are random; inference in float32. Cutting and resizing the crops is not counted.

Time: medians of interleaved calls in one process.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

from collimate.encoders import OpenClipImageEncoder, OpenClipTextEncoder
from collimate.processing import ClipTokenizer, ImageProcessor
from collimate_vision_language import CLOC
from tools.bench import _harness

SIDE = 224
LOOK, PROMPTS, LAYERS, CROPS = "look", "prompts", "layer for each", "crops"


def contenders(method: CLOC, regions: int, device: str) -> dict[str, Callable[[], Tensor]]:
    """Each gives the vectors of the regions, (R, D), but for the look, which gives that of the picture."""
    draw = torch.Generator().manual_seed(0)
    picture = torch.randn(1, 3, SIDE, SIDE, generator=draw).to(device)
    crops = torch.randn(1, 3, SIDE, SIDE, generator=draw).to(device).expand(regions, -1, -1, -1).contiguous()
    corners = torch.rand(regions, 2, generator=draw) * 0.5
    boxes = torch.cat([corners, corners + 0.1 + 0.4 * torch.rand(regions, 2, generator=draw)], 1).to(device)

    def layers() -> Tensor:
        """What `prompt` computes, by torch's own layer."""
        image, prompter = method("image", picture), method.prompter
        assert image.tokens is not None
        prompts = prompter.box_tokens(boxes[None])[0]  # type: ignore[operator]
        hidden = torch.cat([prompts, image.tokens.expand(regions, -1, -1)], 1)
        return method.region_projection(prompter.layer(hidden).mean(1))  # type: ignore[operator]

    return {
        LOOK: lambda: method("image", picture).pooled,
        PROMPTS: lambda: method.prompt(method("image", picture), boxes)[0],
        LAYERS: layers,
        CROPS: lambda: method("image", crops).pooled,
    }


def compare(method: CLOC, regions: int, device: str, repeats: int) -> dict:
    with torch.inference_mode():
        runs = contenders(method, regions, device)
        torch.testing.assert_close(runs[PROMPTS](), runs[LAYERS](), rtol=1e-3, atol=1e-4)
        seconds = _harness.interleaved(runs, repeats)
    return {
        "regions": regions,
        **{f"{name} s": value for name, value in seconds.items()},
        "prompts in looks": seconds[PROMPTS] / seconds[LOOK],
        "cheaper than layers": seconds[LAYERS] / seconds[PROMPTS],
        "cheaper than crops": seconds[CROPS] / seconds[PROMPTS],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--regions", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.manual_seed(0)
    method = CLOC(
        OpenClipImageEncoder(model="ViT-B-16"),
        OpenClipTextEncoder(width=64, heads=1, layers=1),  # takes no part
        ImageProcessor(SIDE),
        ClipTokenizer(77),
    )
    method = method.to(options.device).eval()
    rows = [compare(method, regions, options.device, options.repeats) for regions in options.regions]
    cuda = options.device != "cpu"
    _harness.report("cloc_prompt_cuda" if cuda else "cloc_prompt", rows, model="ViT-B-16", side=SIDE)


if __name__ == "__main__":
    main()
