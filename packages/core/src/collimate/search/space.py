"""Several trained methods as one space, because they share what encodes texts.

Where a text has the same vector in two methods, what each of them draws near to texts lies in one space: pictures and
sounds that never met in training are compared by their cosine. That holds where the text tower, its projection and the
tokenizer of both are equal, weight by weight; one was frozen while the other modality was trained towards it
(`collimate.checkpoints.trained_tower`). Whether it holds is found out by hashes, and not taken on trust.

Shape legend: N samples, D width.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from os import PathLike, fspath
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from collimate.checkpoints import load
from collimate.checkpoints.trained import parts_of
from collimate.devices import device_named
from collimate.evaluation.embedding import fingerprint
from collimate.evaluation.features import Precision, encode_here, is_cosine
from collimate.processing import Processor
from collimate.training import Method

TEXT = "text"


class NotOneSpace(ValueError):
    """Methods that were asked to share a space do not."""


class TextSpace(NamedTuple):
    """What decides on a text's vector, each part as a hash of its weights or files and its settings."""

    tower: str
    projection: str
    tokenizer: str

    @property
    def hash(self) -> str:
        """Of all three."""
        return blake2b("".join(self).encode(), digest_size=16).hexdigest()


class Space:
    """Methods whose texts have equal vectors, as one encoder of all their modalities.

    Args:
        methods: name, such as the folder, -> method. They rank by the cosine.
        device: `auto` is the first GPU where there is one, else the CPU.

    Attributes:
        modalities: each that one of them encodes, texts last.
        methods: modality -> the method that encodes it.
        names: modality -> the name of that method.
        hash: equal for equal spaces.

    Raises:
        NotOneSpace: two methods' texts differ, or a method ranks by something else than the cosine.
        ValueError: two methods encode the same modality, or there is no method.
    """

    def __init__(self, methods: Mapping[str, Method], device: str = "auto") -> None:
        if not methods:
            raise ValueError("A space is made of at least one trained method: name its model folder.")
        self.hash = _common_space(methods).hash
        self.methods: dict[str, Method] = {}
        self.names: dict[str, str] = {}
        for name, method in methods.items():
            for modality in method.modalities:
                if modality in self.methods and modality != TEXT:
                    raise ValueError(
                        f"{self.names[modality]} and {name} both encode {modality!r}: leave one of them out."
                    )
                self.methods.setdefault(modality, method)
                self.names.setdefault(modality, name)
        self.modalities = (*(name for name in self.methods if name != TEXT), TEXT)
        self.device = torch.device(device_named(device))
        for method in methods.values():
            method.to(self.device)

    def encode(
        self, modality: str, raws: Sequence[Any], precision: Precision = "float32", batch_size: int = 64
    ) -> Float[Tensor, "N D"]:
        """Unit vectors of raw samples, on the CPU.

        Args:
            modality: one of `modalities`.
            raws: pictures, texts, sounds, ..., as the modality's processor takes them.

        Raises:
            ValueError: no method encodes this modality.
        """
        pooled = encode_here(self.method(modality), modality, raws, False, self.device, precision, batch_size).pooled
        return normalize(pooled, dim=-1)

    def method(self, modality: str) -> Method:
        """The one that encodes a modality.

        Raises:
            ValueError: there is none.
        """
        if modality not in self.methods:
            raise ValueError(f"No model here encodes {modality!r}; they encode {', '.join(self.modalities)}.")
        return self.methods[modality]


def open_space(checkpoints: Sequence[str | PathLike[str]], device: str = "auto") -> Space:
    """Load methods and see that they share a space.

    Args:
        checkpoints: the model folders that training left (`runs/clip_join_demo/model`), one or more.
        device: `auto` is the first GPU where there is one, else the CPU.

    Raises:
        NotOneSpace: they do not; says which two, and what differs.
        CheckpointError: one of them cannot be loaded.
        ValueError: one holds an encoder alone, or two encode the same modality.
    """
    methods: dict[str, Method] = {}
    for checkpoint in checkpoints:
        method = load(checkpoint)
        if not isinstance(method, Method):
            raise ValueError(f"{checkpoint} holds a {type(method).__name__} alone, which shares no space with texts.")
        methods[fspath(checkpoint)] = method
    return Space(methods, device)


def text_space(method: Method) -> TextSpace:
    """What decides on a text's vector in a method, as hashes.

    A tower hashes alike whether it is frozen or not, and with its projection inside or beside it.

    Raises:
        ValueError: the method encodes no texts, or not by a tower with a projection.
    """
    if TEXT not in method.modalities:
        raise ValueError(f"{type(method).__name__} encodes {', '.join(method.modalities)}, and no texts to meet in.")
    tower, projection = parts_of(method, TEXT)
    return TextSpace(_part(tower), _part(projection), tokenizer_hash(method.processors[TEXT]))


def tokenizer_hash(tokenizer: Processor) -> str:
    """Of a tokenizer's settings and of its vocabulary, wherever their files lie."""
    config = tokenizer.config()
    settings = {name: value for name, value in config["init_args"].items() if name != "path"}
    digest = blake2b(json.dumps([config["class_path"], settings], sort_keys=True).encode(), digest_size=16)
    with TemporaryDirectory() as folder:
        tokenizer.save_files(Path(folder))
        for path in sorted(Path(folder).iterdir()):
            if path.name != "tokenizer_config.json":  # it tells from where it was read
                digest.update(path.name.encode() + path.read_bytes())
    digest.update(tokenizer(tokenizer.example()).numpy().tobytes())  # and what those settings would tell
    return digest.hexdigest()


def _part(module: Any) -> str:
    """Of a part's settings and weights."""
    settings = json.dumps(module.config(), sort_keys=True).encode()
    return blake2b(settings + fingerprint(module).encode(), digest_size=16).hexdigest()


def _common_space(methods: Mapping[str, Method]) -> TextSpace:
    spaces: dict[str, TextSpace] = {}
    for name, method in methods.items():
        if not is_cosine(method):
            raise NotOneSpace(f"{name}: {type(method).__name__} does not rank by the cosine of one vector a sample.")
        try:
            spaces[name] = text_space(method)
        except ValueError as error:
            raise NotOneSpace(f"{name}: {error}") from error
    (first, wanted), *others = spaces.items()
    for name, space in others:
        if differing := [part for part in TextSpace._fields if getattr(space, part) != getattr(wanted, part)]:
            raise NotOneSpace(
                f"{first} and {name} share no space: {_listed(differing)} of their texts differ. Train one of them "
                f"towards the frozen text tower of the other: in its recipe, text_encoder is "
                f"collimate.checkpoints.trained_tower(source: {first}), text_projection is "
                f"collimate.encoders.NoProjection, and tokenizer is collimate.checkpoints.trained_processor(source: "
                f"{first}); configs/audio/clap_join_demo.yaml is an example."
            )
    return wanted


def _listed(parts: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))
