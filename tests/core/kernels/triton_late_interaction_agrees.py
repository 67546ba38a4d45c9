"""Late interaction in Triton against torch, as a program: `python triton_late_interaction_agrees.py [device]`.

A program, because TRITON_INTERPRET=1, which runs the kernels on CPU tensors, must be set before triton is imported.
"""

import sys
from unittest.mock import patch

import torch

from collimate.kernels import late_interaction, triton_late_interaction
from collimate.testing import assert_close


def masked(samples: int, tokens: int, draw: torch.Generator) -> torch.Tensor:
    mask = torch.rand(samples, tokens, generator=draw) > torch.rand(samples, 1, generator=draw)
    mask[torch.arange(samples), torch.randint(tokens, (samples,), generator=draw)] = True
    return mask


def agrees(
    queries: int, query_tokens: int, keys: int, key_tokens: int, width: int, masks: bool, normalize: bool,
    dtype: torch.dtype, device: str,
) -> None:  # fmt: skip
    draw = torch.Generator().manual_seed(queries)
    query, key = (
        torch.randn(*shape, width, generator=draw).to(device, dtype)
        for shape in ((queries, query_tokens), (keys, key_tokens))
    )
    if normalize:
        query[0, 0] = 0  # a zero vector has no direction
    if masks:
        arguments = [masked(queries, query_tokens, draw).to(device), masked(keys, key_tokens, draw).to(device)]
        query[~arguments[0]] = torch.nan  # what padding holds does not matter
    else:
        arguments = [None, None]
    cotangents = [torch.randn(shape, generator=draw).to(device) for shape in ((queries, keys), (keys, queries))]

    def found(module):
        leaves = [query.clone().requires_grad_(), key.clone().requires_grad_()]
        with patch.object(late_interaction, "_sweeps", lambda x, y: module):
            scores = late_interaction.pair_late_interaction(*leaves, *arguments, normalize)
            torch.autograd.backward(scores, cotangents)
        values = [*scores, *(leaf.grad for leaf in leaves)]
        return dict(zip(("by query", "by key", "query gradient", "key gradient"), values, strict=True))

    half = dtype != torch.float32
    what = f"{queries} x {query_tokens} against {keys} x {key_tokens}, width {width}, {dtype}, masks {masks}"
    assert_close(found(triton_late_interaction), found(late_interaction), 2e-2 if half else 1e-4, what)


if __name__ == "__main__":
    where = sys.argv[1] if len(sys.argv) > 1 else "cpu"
    torch.set_float32_matmul_precision("highest")
    kinds = [torch.float32, torch.float16]
    if where == "cuda":  # the interpreter knows no bfloat16
        kinds.append(torch.bfloat16)
    for numbers in kinds:
        agrees(3, 70, 5, 20, 24, True, True, numbers, where)  # more than one block of own tokens; widths of 16 and 32
        agrees(2, 140, 3, 133, 40, True, True, numbers, where)  # a key wider than `COLUMNS`; two blocks of rows
        agrees(4, 9, 2, 16, 70, False, True, numbers, where)  # two steps of depth; sides change places
        agrees(1, 5, 1, 3, 16, False, False, numbers, where)
    print("agree")
