"""`collimate data regions`: boxes for the things that captions name, by an open-vocabulary detector of transformers.

The pseudo-labels of CLOC (VESL, arXiv 2410.02746, section 4): the noun phrases of a sample's captions are what the
detector is asked for; each box above the threshold is captioned with its most confident phrase. They are added to the
sample's `regions.json` as `{"box": [x0, y0, x1, y1], "phrase": ..., "score": ..., "model": ...}`.

Departures: the paper's own detector, fine-tuned OWLv2 on pictures of 448 x 448 pixels, was not released; any detector
runs at its own resolution. Boxes of less than a pixel are left out.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from collimate.data.captions import captions_of
from collimate.data.decoding import naming
from collimate.data.phrases import MAX_PHRASES, Tagger, queries, tagger_named
from collimate.data.regions import REGIONS, Box, clipped, is_seen
from collimate.data.rewriting import Change, Precision, listed_in, picture_of, rewrite
from collimate.data.source import CorruptSample, Sample
from collimate.devices import device_named

OWL = ("owlvit", "owlv2")
GROUNDING_DINO = ("grounding-dino", "mm-grounding-dino")


def regions(
    data: str,
    output: str,
    model: str,
    kinds: list[str] | None = None,
    tagger: Literal["nltk", "textblob"] = "nltk",
    threshold: float = 0.1,
    max_phrases: int = MAX_PHRASES,
    batch_size: int = 8,
    device: str = "auto",
    precision: Precision = "float32",
) -> None:
    """Add boxes with phrases to shards or a table. Needs the extras `collimate[huggingface]` and `collimate[phrases]`.

    Each shard is written anew, under its own name, with its samples in their order; a table as another table. They
    appear only when they are whole: run the same command again after an interruption, and it goes on. Samples in which
    nothing is found, or whose picture or captions are damaged, are copied as they are, and counted.

    Args:
        data: a folder or pattern of shards with pictures and captions, or a table of them.
        output: the folder of the shards with regions; or the new table, a .jsonl file.
        model: an open-vocabulary detector of transformers (OWL-ViT, OWLv2, Grounding DINO): a folder, or a hub id.
        kinds: of the captions that are read, such as `[raw, synthetic]`; all, if not given.
        tagger: of parts of speech: NLTK's, which needs data that it downloads; or TextBlob's, which needs none and errs
            more often.
        threshold: the least confidence of a box. The paper's 0.1 unless given.
        max_phrases: at most so many phrases of a sample are asked for. The paper's 20 unless given.
        batch_size: pictures at a time.
        device: `auto` is the first GPU where there is one, else the CPU.
        precision: of the model.

    Raises:
        ValueError: the tagger's data are missing, the model is of another kind, two shards have one name, or the output
            was made otherwise.
        ImportError: an extra is missing.
        OSError: there is no such model.
    """
    plan = {
        "model": model,
        "kinds": kinds,
        "tagger": tagger,
        "threshold": threshold,
        "max_phrases": max_phrases,
        "precision": precision,
    }
    tag = tagger_named(tagger)  # before the model is loaded: what is missing is told at once

    @cache
    def detector() -> Detector:
        return Detector(model, threshold, device, precision)

    def begin(shard: int) -> Change:
        find = detector()
        return lambda samples, without: _add_regions(samples, find, tag, kinds, max_phrases, without)

    rewrite(data, output, plan, "region", REGIONS, batch_size, begin)


class Detector:
    """An open-vocabulary detector of transformers as a function of pictures and what to find in them.

    Args:
        model: a folder or a hub id.
        threshold, device, precision: as for `regions`.

    Raises:
        ImportError: transformers is not installed.
        OSError: there is no such model.
        ValueError: the model is of another kind.
    """

    def __init__(
        self, model: str, threshold: float = 0.1, device: str = "auto", precision: Precision = "float32"
    ) -> None:
        import torch
        from transformers import AutoConfig, AutoModelForZeroShotObjectDetection, AutoProcessor

        local = Path(model).is_dir()
        self.name = Path(model).resolve().name if local else model
        self.kind = AutoConfig.from_pretrained(model, local_files_only=local).model_type
        if self.kind not in (*OWL, *GROUNDING_DINO):
            raise ValueError(f"{model} is a {self.kind}; expected one of {', '.join((*OWL, *GROUNDING_DINO))}.")
        self.threshold, self.device, self.dtype = threshold, device_named(device), getattr(torch, precision)
        network: Any = AutoModelForZeroShotObjectDetection.from_pretrained(
            model, dtype=self.dtype, local_files_only=local
        )
        self.network = network.to(self.device).eval()
        self.processor: Any = AutoProcessor.from_pretrained(model, local_files_only=local)

    def __call__(
        self, pictures: Sequence[Image.Image], phrases: Sequence[Sequence[str]]
    ) -> list[list[tuple[Box, str, float]]]:
        """For each RGB picture the boxes of its phrases, in its pixels, with phrase and confidence, best first.

        Args:
            pictures: one or several.
            phrases: of each picture, at least one.
        """
        import torch

        texts = [[self._plain(phrase) for phrase in each] for each in phrases]
        inputs = self.processor(images=list(pictures), text=texts, return_tensors="pt", truncation=True, **self._length)
        inputs = inputs.to(self.device, dtype=self.dtype)  # of what is floating
        with torch.inference_mode():
            outputs = self.network(**inputs)
        counts = torch.tensor([len(each) for each in phrases], device=self.device)
        logits = outputs.logits if self.kind in OWL else self._of_phrases(outputs.logits, inputs["input_ids"], counts)
        # Pictures with fewer phrases were filled up with empty ones, which nothing may be captioned with.
        is_phrase = torch.arange(logits.shape[-1], device=self.device) < counts[:, None]
        outputs.logits = logits.float().masked_fill(~is_phrase[:, None], -torch.inf)
        outputs.pred_boxes = outputs.pred_boxes.float()
        sizes = [picture.size[::-1] for picture in pictures]
        found = self.processor.image_processor.post_process_object_detection(outputs, self.threshold, sizes)
        return [self._listed(each, own, picture) for each, own, picture in zip(found, phrases, pictures, strict=True)]

    def _plain(self, phrase: str) -> str:
        """What stands for a phrase: Grounding DINO parts phrases by full stops."""
        return " ".join(phrase.replace(".", " ").split()) if self.kind in GROUNDING_DINO else phrase

    @property
    def _length(self) -> dict[str, Any]:
        """How texts are filled up and cut."""
        if self.kind in OWL:
            return {"padding": "max_length", "max_length": self.network.config.text_config.max_position_embeddings}
        return {"padding": True, "max_length": self.network.config.max_text_len}

    def _of_phrases(self, logits: Any, ids: Any, counts: Any) -> Any:
        """Grounding DINO's logits of tokens as logits of phrases: that of the best of a phrase's tokens.

        Args:
            logits: (B, queries, at least L).
            ids: (B, L), the phrases' tokens with full stops between them.
            counts: (B,) phrases.

        Returns:
            (B, queries, P), minus infinity for phrases that were cut off.
        """
        import torch

        tokenizer = self.processor.tokenizer
        is_stop = ids == tokenizer.convert_tokens_to_ids(".")
        owner = is_stop.cumsum(1)
        is_word = ~is_stop & ~torch.isin(ids, torch.tensor(tokenizer.all_special_ids, device=ids.device))
        logits = logits[..., : ids.shape[1]]
        best = [
            logits.masked_fill(~(is_word & (owner == number))[:, None], -torch.inf).amax(-1)
            for number in range(int(counts.max()))
        ]
        return torch.stack(best, -1)

    def _listed(self, found: Any, phrases: Sequence[str], picture: Image.Image) -> list[tuple[Box, str, float]]:
        order = found["scores"].argsort(descending=True, stable=True)
        boxes, labels, scores = (found[key][order].tolist() for key in ("boxes", "labels", "scores"))
        inside = [clipped((x0, y0, x1, y1), *picture.size) for x0, y0, x1, y1 in boxes]
        words = [phrases[int(label)] for label in labels]
        return [each for each in zip(inside, words, scores, strict=True) if is_seen(each[0])]


def _add_regions(
    samples: Sequence[Sample],
    detector: Detector,
    tagger: Tagger,
    kinds: Sequence[str] | None,
    max_phrases: int,
    without: Counter[str],
) -> None:
    """Add to each sample the boxes of what its captions name."""
    asked: list[tuple[Sample, list[Any], Image.Image, list[str]]] = []
    for sample in samples:
        try:
            with naming(sample, "captions"):
                captions = [caption.text for caption in captions_of(sample) if kinds is None or caption.kind in kinds]
            phrases = queries(captions, tagger, max_phrases)
            if not phrases:
                raise CorruptSample(sample["__key__"], "no noun phrase" if captions else "no caption of these kinds")
            asked.append((sample, listed_in(sample, REGIONS), picture_of(sample), phrases))
        except CorruptSample as error:
            without[error.reason] += 1
    found = detector([picture for *_, picture, _ in asked], [phrases for *_, phrases in asked]) if asked else []
    for (sample, before, *_), own in zip(asked, found, strict=True):
        if not own:
            without["nothing found"] += 1
            continue
        new = [
            {
                "box": [round(side, 2) for side in box],
                "phrase": phrase,
                "score": round(score, 4),
                "model": detector.name,
            }
            for box, phrase, score in own
        ]
        sample[REGIONS] = json.dumps([*before, *new], ensure_ascii=False).encode()
