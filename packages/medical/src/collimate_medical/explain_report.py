"""Why a sample and a text were brought together: the regions, moments and words that count, drawn.

The score is the method's own similarity of the sample and the text. X-rays and ECGs are explained by the gradient
rollout (`collimate_medical.explanation`), or by relevance (`collimate_medical.relevance`); a word counts as much as the
score falls when it is left out of the text. None of this says why a finding is there: it says what a model looked at.

A tower's tokens lie on the grid of an X-ray's patches, or along an ECG's time; those of `ECGTransformer` mix all leads,
so that moments are told apart, and leads are not.

Shape legend: L tokens, h w their grid, T samples of an ECG's lead as the tower sees it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from collimate.data import Source
from collimate.data.captions import captions_of
from collimate.data.decoding import extensions_of, value_of
from collimate.data.source import Sample
from collimate.encoding import Encoding
from collimate.evaluation import pictures
from collimate.evaluation.features import encode_here, encoder_of, evaluating, place
from collimate.evaluation.report import Report
from collimate.evaluation.result import number
from collimate.training import Method
from collimate_medical.ecg import ECG, LEADS, with_leads
from collimate_medical.ecg_paper import ecg_paper
from collimate_medical.explanation import explain as rollout
from collimate_medical.reading import read_ecg
from collimate_medical.relevance import explain_by_relevance
from collimate_medical.transformers import KERNEL, ECGTransformer

Explainer = Literal["rollout", "relevance"]

MAX_WORDS = 300  # ours: each is one pass of the text tower
MARKED = 0.5  # ours: of the largest relevance of a moment, above which a span is marked


@dataclass
class Explanation:
    """What counts in one sample for one text.

    Attributes:
        index: the sample's place in its source.
        text: what the sample is compared with.
        scores: modality -> the similarity of the sample and the text.
        maps: modality -> how much each token counts, on its grid.
        spans: seconds of the ECG that count most.
        words: modality -> each word of the text, and by how much the score falls without it.
        raws: modality -> what the sample holds, decoded.
        inputs: modality -> what the processor made of it.
    """

    index: int
    text: str
    scores: dict[str, float] = field(default_factory=dict)
    maps: dict[str, Float[Tensor, "h w"]] = field(default_factory=dict)
    spans: list[tuple[float, float]] = field(default_factory=list)
    words: dict[str, list[tuple[str, float]]] = field(default_factory=dict)
    raws: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, Tensor] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain data. Texts and words stay out: a report may be anybody's."""
        return {
            "sample": self.index,
            "scores": self.scores,
            "maps": {
                name: [[round(each, 6) for each in row] for row in rows.tolist()] for name, rows in self.maps.items()
            },
            "spans": [list(span) for span in self.spans],
        }


def explain_sample(
    method: Method,
    source: Source,
    index: int,
    text: str | None = None,
    explainer: Explainer = "rollout",
    start_layer: int = 0,
    device: str = "auto",
) -> Explanation:
    """Explain a method's similarity of one sample and a text.

    Args:
        method: one that encodes text and X-rays or ECGs, with transformers.
        source: where the sample lies.
        index: its place.
        text: what it is compared with; its own report unless given.
        explainer: `rollout` takes transformers of timm too, `relevance` those of this package.
        start_layer: the first layer that counts.
        device: where the towers run.

    Raises:
        ValueError: there is no such sample, it has neither X-ray nor ECG that the method encodes, or no text.
        CorruptSample: it cannot be read.
    """
    if not 0 <= index < len(source):
        raise ValueError(f"{source.name} has {len(source)} samples, counted from 0; there is no sample {index}.")
    sample = source.read(index)
    shown = [name for name in method.modalities if name != "text" and _has(sample, name)]
    if not shown:
        wanted = " or ".join(name for name in method.modalities if name != "text")
        raise ValueError(f"{source.name}: sample {index} has no {wanted}.")
    found = Explanation(index, _text(sample, text, source, index))
    where = place(method, device)
    with evaluating(method):
        told = _plain(encode_here(method, "text", [found.text], True, where, "float32")).to(where)
        for modality in shown:
            _explain_modality(found, method, modality, sample, told, explainer, start_layer, where)
    return found


def over_time(relevance: Float[Tensor, " L"], samples: int, encoder: nn.Module) -> Float[np.ndarray, " T"]:
    """How much each sample of an ECG counts: the mean of the tokens that see it.

    Tokens of encoders other than `ECGTransformer` are taken to share the time evenly.
    """
    count = len(relevance)
    if not isinstance(encoder, ECGTransformer):
        return relevance[torch.arange(samples) * count // samples].numpy()
    sums, seen = np.zeros(samples), np.zeros(samples)
    for token, value in enumerate(relevance.tolist()):
        sums[KERNEL * token : KERNEL * (token + KERNEL)] += value
        seen[KERNEL * token : KERNEL * (token + KERNEL)] += 1
    return sums / np.maximum(seen, 1)


def marked_spans(relevance: Float[np.ndarray, " T"], seconds: float) -> list[tuple[float, float]]:
    """From when to when moments count more than half as much as the one that counts most."""
    if not relevance.size or relevance.max() <= relevance.min():
        return []
    level = relevance.min() + MARKED * (relevance.max() - relevance.min())
    edges = np.flatnonzero(np.diff(np.concatenate([[False], relevance >= level, [False]]).astype(np.int8)))
    step = seconds / len(relevance)
    return [
        (round(first * step, 3), round(last * step, 3)) for first, last in zip(edges[::2], edges[1::2], strict=True)
    ]


def add_explanation(report: Report, found: Explanation, encoders: Mapping[str, nn.Module], seconds: float) -> None:
    """The X-ray with its map, the ECG on paper, and the words.

    Args:
        report: what it is added to.
        found: of `explain_sample`.
        encoders: modality -> its tower, which says what a token sees.
        seconds: how long the ECG is that the tower saw.
    """
    report.add_heading(f"Sample {found.index}")
    report.add_facts(
        {"text": found.text, **{f"similarity, {name}": number(value) for name, value in found.scores.items()}}
    )
    for modality, scores in found.maps.items():
        if modality == "ecg":
            ecg, moments = (
                _seen(found.raws["ecg"], seconds),
                over_time(scores.flatten(), found.inputs["ecg"].shape[-1], encoders["ecg"]),
            )
            spans = ", ".join(f"{start:.2f} to {end:.2f} s" for start, end in found.spans)
            caption = f"25 mm/s, 10 mm/mV. Shade: how much a moment counts, in all leads; most: {spans or 'none'}."
            report.add_figure(ecg_paper(ecg, moments, found.spans), caption)
        else:
            picture = pictures.canvas(found.inputs[modality])
            size = (found.inputs[modality].shape[1], found.inputs[modality].shape[2])
            overlay = pictures.heat(picture, scores, torch.zeros(0, 4), size, _peak(scores, size))
            both = [(picture, "as the model sees it"), (overlay, "what counts for the text; the cross is its maximum")]
            report.add_images(both, "X-ray", "large")
    for modality, words in found.words.items():
        largest = max((abs(value) for _, value in words), default=0) or 1
        title = f"Words that bring the text to the {modality} (blue) or away from it (red)"
        report.add_words([(word, value / largest) for word, value in words], title)


def explain(
    checkpoint: str,
    data: str,
    samples: Sequence[int] = (0,),
    text: str | None = None,
    explainer: Explainer = "rollout",
    output: str = "runs/explain",
    start_layer: int = 0,
    device: str = "auto",
) -> None:
    """Draw what a model looks at: regions of X-rays, moments of ECGs and words of a text.

    The page shows X-rays, ECGs and texts of the samples: keep it as you keep the data.

    Args:
        checkpoint: a model folder, or a .ckpt of a training run.
        data: samples with X-rays or ECGs (see `collimate data inspect`).
        samples: which of them, by their places from 0, as `[0, 7]`.
        text: what they are compared with, such as "pleural effusion"; each sample's own report unless given.
        explainer: `rollout`, attention weighed by its gradient, or `relevance`, by what Chefer et al. hand down, as in
            MoRE's figures.
        output: the folder of report.html and report.json.
        start_layer: the first layer that counts.
        device: `auto` is the first GPU where there is one, else the CPU.

    Raises:
        ValueError: the checkpoint holds no method, or as for `explain_sample`.
    """
    from pathlib import Path

    import collimate
    from collimate.console import say
    from collimate.data import open_source

    method = collimate.load(checkpoint)
    if not isinstance(method, Method):
        raise ValueError(f"{checkpoint} holds a {type(method).__name__} alone, which compares nothing with texts.")
    source = open_source(data)
    report = Report("Explanations", checkpoint)
    for index in samples:
        found = explain_sample(method, source, index, text, explainer, start_layer, device)
        towers = {modality: encoder_of(method, modality) for modality in found.maps}
        add_explanation(report, found, towers, getattr(method.processors.get("ecg"), "seconds", 10.0))
        report.record("explanation", found.to_json())
    report.add_facts(
        {
            "data": source.name,
            "explainer": f"{explainer}, from layer {start_layer} on",
            "words": "how far the similarity falls without the word",
            "not a medical device": "this shows what a model looked at, and not why a finding is there",
        }
    )
    page = report.save(Path(output))
    say(f"Report: {page}\nJSON:   {page.with_suffix('.json')}")


# Scores -----------------------------------------------------------------------------------------------------------


def _explain_modality(
    found: Explanation,
    method: Method,
    modality: str,
    sample: Sample,
    told: Encoding,
    explainer: Explainer,
    start_layer: int,
    device: torch.device,
) -> None:
    """Add what counts in one modality."""
    processor, tower = method.processors[modality], encoder_of(method, modality)
    found.raws[modality] = value_of(sample, extensions_of(modality))
    found.inputs[modality] = processor(found.raws[modality])
    inputs = processor.finish(found.inputs[modality][None].to(device))

    def score(encoding: Encoding) -> Float[Tensor, " B"]:
        with _given(method, modality, encoding):
            return method.similarity(method(modality, inputs), told)[:, 0]

    attribute: Callable[..., Tensor] = explain_by_relevance if explainer == "relevance" else rollout
    relevance = attribute(tower, inputs, score, start_layer)[0].cpu()
    with torch.inference_mode():
        seen = method(modality, inputs)
        found.scores[modality] = float(method.similarity(seen, told)[0, 0])
        grid = tower(inputs).grid or (1, len(relevance))
    found.maps[modality] = relevance.view(*grid[-2:])
    if modality == "ecg":
        moments = over_time(relevance, found.inputs["ecg"].shape[-1], tower)
        found.spans = marked_spans(moments, getattr(processor, "seconds", 10.0))
    found.words[modality] = _words(method, seen, found.text, device)


def _words(method: Method, seen: Encoding, text: str, device: torch.device) -> list[tuple[str, float]]:
    """Each word, and by how much the similarity falls without it."""
    words = text.split()
    shortened = [" ".join(words[:place] + words[place + 1 :]) or " " for place in range(min(len(words), MAX_WORDS))]
    told = encode_here(method, "text", [text, *shortened], True, device, "float32").to(device)
    with torch.inference_mode():
        scores = method.similarity(seen, told)[0]
    falls = (scores[0] - scores[1:]).tolist()
    return list(zip(words, falls + [0.0] * (len(words) - len(falls)), strict=True))


def _plain(encoding: Encoding) -> Encoding:
    """A copy that gradients may flow past, which those of inference mode may not."""
    tokens, mask = (None if each is None else each.clone() for each in (encoding.tokens, encoding.mask))
    return encoding.replace(pooled=encoding.pooled.clone(), tokens=tokens, mask=mask)


@contextmanager
def _given(method: Method, modality: str, encoding: Encoding) -> Iterator[None]:
    """The method with a tower that has answered already: what follows the tower, as a function of its answer."""
    towers: Any = method.encoders
    tower = towers[modality]
    towers[modality] = _Answer(encoding)
    try:
        yield
    finally:
        towers[modality] = tower


class _Answer(nn.Module):
    def __init__(self, encoding: Encoding) -> None:
        super().__init__()
        self.encoding = encoding

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> Encoding:
        return self.encoding


# Samples ----------------------------------------------------------------------------------------------------------


def _has(sample: Sample, modality: str) -> bool:
    return any(key in sample for key in extensions_of(modality))


def _text(sample: Sample, text: str | None, source: Source, index: int) -> str:
    if text is not None and text.strip():
        return " ".join(text.split())
    captions = captions_of(sample) if _has(sample, "text") else []
    if not captions:
        raise ValueError(f"{source.name}: sample {index} has no report: give a text to compare it with.")
    return " ".join(captions[0].text.split())


def _seen(raw: Any, seconds: float) -> ECG:
    """The part of an ECG that the tower saw, in the leads' usual order, with those it has."""
    ecg = read_ecg(raw)
    known = with_leads(ecg, LEADS) if set(ecg.leads) & set(LEADS) else ecg
    samples = round(seconds * ecg.rate)
    signal = known.signal[:, :samples]
    short = samples - signal.shape[1]
    return ECG(np.pad(signal, ((0, 0), (0, short)), constant_values=np.nan), ecg.rate, known.leads)


def _peak(scores: Float[Tensor, "h w"], size: tuple[int, int]) -> tuple[int, int]:
    row, column = divmod(int(scores.argmax()), scores.shape[1])
    return int((column + 0.5) * size[1] / scores.shape[1]), int((row + 0.5) * size[0] / scores.shape[0])
