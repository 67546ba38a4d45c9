"""`collimate data caption`: synthetic captions for shards, by any image-to-text model of transformers.

They are added to each sample's `captions.json` as `{"text": ..., "kind": "synthetic", "model": ...}`, where
`OneCaption(kinds=["synthetic"])` finds them; all else is copied as it is.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image

from collimate.data.rewriting import Change, Precision, listed_in, picture_of, rewrite
from collimate.data.source import CorruptSample, Sample
from collimate.devices import device_named

QUESTION = "Describe the image in one sentence."  # ours, for models that must be asked something


def caption(
    data: str,
    output: str,
    model: str,
    prompt: str | None = None,
    kind: str = "synthetic",
    batch_size: int = 16,
    max_tokens: int = 40,
    beams: int = 1,
    temperature: float = 0.0,
    seed: int = 0,
    device: str = "auto",
    precision: Precision = "float32",
) -> None:
    """Add synthetic captions to shards or a table. Needs the extra `collimate[huggingface]`.

    Each shard is written anew, under its own name, with its samples in their order; a table as another table. They
    appear only when they are whole: run the same command again after an interruption, and it goes on. Samples whose
    picture is damaged are copied without a caption, and counted. To share the work out, give each machine its own
    shards and output folder.

    Args:
        data: a folder or pattern of shards with pictures, or a table of them.
        output: the folder of the shards with captions; or the new table, a .jsonl file.
        model: an image-to-text model of transformers (BLIP, GIT, ViT with GPT-2, LLaVA, Qwen-VL, ...): a folder, or a
            hub id.
        prompt: what the model is asked, or what its captions begin with; it is taken off their front again.
        kind: of the new captions.
        batch_size: pictures at a time.
        max_tokens: of a caption.
        beams: of beam search; 1 takes the likeliest token each time.
        temperature: above 0, captions are drawn at that temperature instead.
        seed: of these draws.
        device: `auto` is the first GPU where there is one, else the CPU.
        precision: of the model.

    Raises:
        ValueError: two shards have one name, or the folder holds shards made otherwise.
        OSError: there is no such model.
    """
    plan = {
        "model": model,
        "prompt": prompt,
        "kind": kind,
        "max_tokens": max_tokens,
        "beams": beams,
        "temperature": temperature,
        "seed": seed,
        "precision": precision,
    }

    @cache
    def captioner() -> Captioner:
        return Captioner(model, prompt, max_tokens, beams, temperature, device, precision)

    def begin(shard: int) -> Change:
        captioner().seed(seed + shard)  # anew for each shard: an interrupted run draws what the whole one would
        return lambda samples, without: _add_captions(samples, captioner(), kind, without)

    rewrite(data, output, plan, "caption", "captions.json", batch_size, begin)


class Captioner:
    """An image-to-text model of transformers as a function of pictures.

    Args:
        model: a folder or a hub id.
        prompt, max_tokens, beams, temperature, device, precision: as for `caption`.

    Raises:
        ImportError: transformers is not installed.
        OSError: there is no such model.
        ValueError: the model takes no prompt.
    """

    def __init__(
        self,
        model: str,
        prompt: str | None = None,
        max_tokens: int = 40,
        beams: int = 1,
        temperature: float = 0.0,
        device: str = "auto",
        precision: Precision = "float32",
    ) -> None:
        import torch
        from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

        local = Path(model).is_dir()
        self.name = Path(model).resolve().name if local else model
        self.device = device_named(device)
        self.dtype = getattr(torch, precision)
        network: Any = AutoModelForImageTextToText.from_pretrained(model, dtype=self.dtype, local_files_only=local)
        self.network = network.to(self.device).eval()
        self.processor: Any
        if network.config.model_type == "vision-encoder-decoder":  # any image model before any text model
            if prompt:
                raise ValueError(f"{model} is a picture's encoder before a text decoder, which takes no prompt.")
            self.processor = AutoImageProcessor.from_pretrained(model, local_files_only=local)
            self.tokenizer: Any = AutoTokenizer.from_pretrained(model, local_files_only=local)
        else:
            self.processor = AutoProcessor.from_pretrained(model, local_files_only=local)
            self.tokenizer = self.processor.tokenizer
            self.tokenizer.padding_side = "left"  # a decoder goes on from the last position
        self.text = _asked(self.processor, prompt)
        self.echo = _plain(self.tokenizer, prompt) if prompt else ""
        sampling = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
        self.settings = {"max_new_tokens": max_tokens, "num_beams": beams, **sampling}

    def __call__(self, pictures: Sequence[Image.Image]) -> list[str]:
        """One text for each RGB picture; may be empty."""
        import torch

        asked = {} if self.text is None else {"text": [self.text] * len(pictures), "padding": True}
        inputs = self.processor(images=list(pictures), return_tensors="pt", **asked)
        inputs = inputs.to(self.device, dtype=self.dtype)  # of what is floating
        given = inputs["input_ids"].clone() if "input_ids" in inputs else None
        with torch.inference_mode():
            tokens = self.network.generate(**inputs, **self.settings)
        if given is not None and torch.equal(tokens[:, : given.shape[1]], given):  # some repeat what they were given
            tokens = tokens[:, given.shape[1] :]
        texts = (" ".join(text.split()) for text in self.tokenizer.batch_decode(tokens, skip_special_tokens=True))
        return [text.removeprefix(self.echo).strip() for text in texts]

    def seed(self, number: int) -> None:
        """Begin the draws of captions anew."""
        import torch

        torch.manual_seed(number)


def _asked(processor: Any, prompt: str | None) -> str | None:
    """What a model's processor takes as text: chat models are asked in the form of their template."""
    if not getattr(processor, "chat_template", None):
        return prompt
    content = [{"type": "image"}, {"type": "text", "text": prompt or QUESTION}]
    return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)


def _plain(tokenizer: Any, text: str) -> str:
    """A text as the tokenizer would give it back."""
    return " ".join(tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True).split())


def _add_captions(samples: Sequence[Sample], captioner: Captioner, kind: str, without: Counter[str]) -> None:
    """Add a caption to each sample that has a picture to describe."""
    found: list[tuple[Sample, list[Any], Image.Image]] = []
    for sample in samples:
        try:
            found.append((sample, listed_in(sample, "captions.json"), picture_of(sample)))
        except CorruptSample as error:
            without[error.reason] += 1
    texts = captioner([picture for *_, picture in found]) if found else []
    for (sample, captions, _), text in zip(found, texts, strict=True):
        if not text:
            without["the model said nothing"] += 1
            continue
        captions = [*captions, {"text": text, "kind": kind, "model": captioner.name}]
        sample["captions.json"] = json.dumps(captions, ensure_ascii=False).encode()
