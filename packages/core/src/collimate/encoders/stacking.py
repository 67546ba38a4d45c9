"""Growth in depth: a deep tower begins with a shallow one's layers, stacked several times.

Du et al. 2024, G_stack, arXiv 2405.15319: of the ways to grow, repeating all layers of a small model in their order,
then training on, saves the most. With the blocks b_1 ... b_k of a trained tower, the grown one of g k blocks begins as

    b_1 ... b_k  b_1 ... b_k  ...        g times,

which is another function than the small tower's. What is not a block (embeddings, norms, heads) is taken as it is.
Paper and code (tongxuluo/prts) advise g = 4, and to grow early: for N parameters and C operations in all after d
tokens, log10 d = 0.88 log10 N + 163.27 / log10 C - 5.74, which is 11 of the 2,000 billion tokens of a Llama of 7
billion parameters.
"""

from __future__ import annotations

import re
from os import PathLike

import torch
from torch import Tensor, nn

from collimate.encoders.base import Encoder
from collimate.encoding import Encoding


class Stacked(Encoder):
    """A deep encoder that begins with the stacked layers of a shallow one. In a recipe it takes the encoder's place:

        image_encoder:
          class_path: collimate.encoders.Stacked
          init_args:
            pretrained: runs/shallow/model
            encoder:
              class_path: collimate.encoders.OpenClipImageEncoder
              init_args: {layers: 24}

    Args:
        encoder: the deep one, of the same class and sizes but for its number of layers.
        pretrained: the folder of the shallow one, or of a method that has it; None where the weights come later.
    """

    def __init__(self, encoder: Encoder, pretrained: str | PathLike[str] | None = None) -> None:
        super().__init__()
        self.encoder, self.width = encoder, encoder.width
        if pretrained is not None:
            stack_into(encoder, type(encoder).from_pretrained(pretrained))

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> Encoding:
        return self.encoder(inputs, mask)

    def example(self) -> Tensor | None:
        return self.encoder.example()

    def depths(self) -> dict[str, int]:
        return {f"encoder.{name}": depth for name, depth in self.encoder.depths().items()}


@torch.no_grad()
def stack_into(deep: nn.Module, shallow: nn.Module) -> None:
    """Copy the weights of a shallow module into a deep one, its blocks over and over.

    Args:
        deep: changed in place. Each list of blocks is a multiple of the shallow one's.
        shallow: of the same class and sizes.

    Raises:
        ValueError: a list of blocks is no multiple, or a weight has no counterpart of its shape.
    """
    lengths = {name: len(module) for name, module in _lists(shallow).items()}
    for name, module in _lists(deep).items():
        if name in lengths and (len(module) % lengths[name] or len(module) < lengths[name]):
            raise ValueError(f"{len(module)} layers of {name} cannot be stacked from {lengths[name]}: use a multiple.")
    given, stacked = shallow.state_dict(), {}
    for name, value in deep.state_dict().items():
        source = _source(name, lengths)
        if source not in given or given[source].shape != value.shape:
            found = tuple(given[source].shape) if source in given else "nothing"
            raise ValueError(f"{name} is {tuple(value.shape)}, the shallow encoder has {found} for it.")
        stacked[name] = given[source]
    deep.load_state_dict(stacked)


def _lists(module: nn.Module) -> dict[str, nn.ModuleList | nn.Sequential]:
    """Name -> a list of alike modules, which grows."""
    return {
        name: child
        for name, child in module.named_modules()
        if isinstance(child, nn.ModuleList | nn.Sequential)
        and len(child) > 0
        and all(type(each) is type(child[0]) for each in child)
        and any(True for _ in child[0].children())
    }


def _source(name: str, lengths: dict[str, int]) -> str:
    """The name of what a weight begins with: block i of a list of k is block i modulo k."""
    for place in re.finditer(r"(?<=\.)\d+(?=\.)", name):
        prefix = name[: place.start() - 1]
        if prefix in lengths:
            return f"{prefix}.{int(place.group()) % lengths[prefix]}{name[place.end() :]}"
    return name
