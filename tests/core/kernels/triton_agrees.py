"""Triton's tile functions against torch's, as a program: `python triton_agrees.py [device]`.

A program, because TRITON_INTERPRET=1, which runs the kernels on CPU tensors, must be set before triton is imported.
"""

import sys

import torch

from collimate.kernels import tile_math, triton_math


def agrees(rows: int, columns: int, device: str) -> None:
    draw = torch.Generator().manual_seed(rows)
    cosines = torch.rand(rows, columns, generator=draw).mul(2).sub(1).to(device)
    scale = torch.tensor(30.0, device=device)
    kept = (torch.rand(rows, columns, generator=draw) > 0.3).to(device)
    kept[0] = False  # a row, and a column, of which nothing is kept
    kept[:, -1] = False
    row_terms, column_terms = (tuple(torch.randn(2, n, generator=draw).to(device)) for n in (rows, columns))
    for shift, _ in (row_terms, column_terms):
        shift -= 30.0  # a log-sum-exp is no less than its largest logit
    row_terms[0][1] = -torch.inf

    for mask in (None, kept):
        logits = cosines * scale
        tile_math.masked_(logits, mask, -torch.inf)
        for dim in (0, 1):
            expected, found = (m.logsumexp(logits, dim, torch.empty_like(logits)) for m in (tile_math, triton_math))
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)

        outs = torch.empty(2, rows, columns, device=device)
        arguments = (cosines, scale, mask, row_terms, column_terms)
        expected, found = (
            math.softmax_gradient(*arguments, out, torch.empty_like(out))
            for math, out in zip((tile_math, triton_math), outs, strict=True)
        )
        torch.testing.assert_close(outs[1], outs[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))

        tiles, buffers = torch.stack([logits, logits]), [torch.empty_like(logits) for _ in range(3)]
        expected, found = (
            math.softplus_and_gradient_(tile, row_terms[1], buffers)
            for math, tile in zip((tile_math, triton_math), tiles, strict=True)
        )
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(tiles[1], tiles[0], rtol=1e-5, atol=1e-6)


if __name__ == "__main__":
    agrees(70, 300, device=sys.argv[1] if len(sys.argv) > 1 else "cpu")
    print("agree")
