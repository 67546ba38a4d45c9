"""The one currency of Collimate: every encoder of every modality returns an `Encoding`.

Shape legend: B samples, L tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class Encoding:
    """What an encoder says of a batch: one vector a sample and, where it has them, its tokens.

    Attributes:
        pooled: one vector a sample, (B, D). Not normalised.
        tokens: token vectors, (B, L, D'), or None for encoders without tokens.
        mask: (B, L) bool, True where a token is real; None means that all of them are.
        grid: (height, width) or (time, height, width) of the tokens where they lie on a grid,
            row-major, so that their product is L, but for `prefix`.
        prefix: so many tokens in front lie on no grid: a class token where the fusion of a method reads it.
    """

    pooled: Float[Tensor, "B D"]
    tokens: Float[Tensor, "B L Dt"] | None = None
    mask: Bool[Tensor, "B L"] | None = None
    grid: tuple[int, ...] | None = None
    prefix: int = 0

    def __post_init__(self) -> None:
        if self.tokens is None and (self.mask is not None or self.grid is not None):
            raise ValueError("An Encoding without tokens can have neither a mask nor a grid.")
        if self.tokens is not None and self.grid is not None:
            cells = 1
            for extent in self.grid:
                cells *= extent
            if cells + self.prefix != self.tokens.shape[1]:
                raise ValueError(
                    f"The grid {self.grid} has {cells} cells for {self.tokens.shape[1]} tokens, of which {self.prefix} "
                    "lie in front of it."
                )
        if self.tokens is not None and self.mask is not None and self.mask.shape != self.tokens.shape[:2]:
            raise ValueError(f"The mask is {tuple(self.mask.shape)}, the tokens are {tuple(self.tokens.shape)}.")

    @property
    def token_mask(self) -> Bool[Tensor, "B L"]:
        """The mask, all True where none was given.

        Raises:
            ValueError: there are no tokens.
        """
        if self.tokens is None:
            raise ValueError("This Encoding has no tokens.")
        if self.mask is not None:
            return self.mask
        return torch.ones(self.tokens.shape[:2], dtype=torch.bool, device=self.tokens.device)

    def pooled_first(self) -> Encoding:
        """The same with the pooled vector as a further token in front: where it is a class token, as fusion reads it.

        Raises:
            ValueError: there are no tokens, or some are masked.
        """
        if self.tokens is None or self.mask is not None:
            raise ValueError("A pooled vector is put in front of tokens of which none is masked.")
        tokens = torch.cat([self.pooled[:, None], self.tokens], 1)
        return Encoding(self.pooled, tokens, None, self.grid, 0 if self.grid is None else self.prefix + 1)

    def replace(self, **changes: object) -> Encoding:
        """A copy with some fields changed."""
        return replace(self, **changes)  # type: ignore[arg-type]

    def to(self, *args: object, **kwargs: object) -> Encoding:
        """`Tensor.to` on every tensor; the mask stays bool."""
        pooled = self.pooled.to(*args, **kwargs)  # type: ignore[call-overload]
        tokens = None if self.tokens is None else self.tokens.to(*args, **kwargs)  # type: ignore[call-overload]
        mask = None if self.mask is None else self.mask.to(pooled.device)
        return Encoding(pooled, tokens, mask, self.grid, self.prefix)

    @staticmethod
    def cat(parts: list[Encoding]) -> Encoding:
        """Join along the batch. Token lists of unequal length are padded and masked."""
        first = parts[0]
        pooled = torch.cat([part.pooled for part in parts])
        if any(part.tokens is None for part in parts):
            return Encoding(pooled)
        length = max(part.tokens.shape[1] for part in parts)  # type: ignore[union-attr]
        even = all(part.tokens.shape[1] == length for part in parts)  # type: ignore[union-attr]
        if even and all(part.mask is None for part in parts):
            return Encoding(pooled, torch.cat([part.tokens for part in parts]), None, first.grid, first.prefix)  # type: ignore[misc]
        tokens, masks = [], []
        for part in parts:
            missing = length - part.tokens.shape[1]  # type: ignore[union-attr]
            tokens.append(torch.nn.functional.pad(part.tokens, (0, 0, 0, missing)))  # type: ignore[arg-type]
            masks.append(torch.nn.functional.pad(part.token_mask, (0, missing)))
        grid = first.grid if even else None
        return Encoding(pooled, torch.cat(tokens), torch.cat(masks), grid, 0 if grid is None else first.prefix)
