"""Answers to questions on scenes: how often they are right, and how they read.

Shape legend: R resamples, n questions.
"""

from __future__ import annotations

from collections import Counter

import torch
from jaxtyping import Float
from torch import Tensor

from collimate.data import EvalLoader, Source
from collimate.data.decoding import value_of
from collimate.evaluation.bootstrap import confidence_intervals, evaluate
from collimate.evaluation.features import Precision, autocast, evaluating, in_order, place, progress, settings_of
from collimate.evaluation.result import Result
from collimate_3d.evaluation.caption_metrics import caption_scores
from collimate_3d.scene_graph_vlp import SceneAnswers

ANSWERS = "labels.json"
RANKS = (1, 10)  # ScanQA's EM@1 and EM@10


def evaluate_answers(
    method: SceneAnswers,
    data: Source,
    batch_size: int = 32,
    num_workers: int = 0,
    device: str = "auto",
    precision: Precision = "float32",
    limit: int | None = None,
    resamples: int = 1000,
) -> Result:
    """Answer every question: EM@1 and EM@10, and caption metrics of the likeliest answer.

    An answer is right if it is one of the question's own, letter for letter; what the list of answers lacks can never
    be right.

    Args:
        method: trained.
        data: questions on scenes.
        batch_size, num_workers, device, precision, limit, resamples: as of `evaluate_grounding`.
    """
    names = method.processors["labels"].names  # type: ignore[union-attr]
    processors = {name: method.processors[name] for name in ("scene", "text")}
    where = place(method, device)
    loader = EvalLoader(data, processors, batch_size, num_workers, [ANSWERS], limit=limit)
    found: list[tuple[list[str], list[str]]] = []
    index: list[int] = []
    with evaluating(method):
        for batch in progress(loader, f"Answering {data.name}"):
            mask = processors["text"].mask(batch["text"])
            assert mask is not None
            with torch.inference_mode(), autocast(where, precision):
                logits = method.answer_logits(*(each.to(where) for each in (batch["scene"], batch["text"], mask)))
            best = logits.topk(min(RANKS[-1], logits.shape[1])).indices.cpu()
            for row in batch["valid"].nonzero()[:, 0].tolist():
                index.append(int(batch["index"][row]))
                found.append(([names[each] for each in best[row].tolist()], list(map(str, batch[ANSWERS][row]))))
    every = in_order(found, torch.tensor(index, dtype=torch.int64))
    hits = {f"EM@{k}": torch.tensor([bool(set(best[:k]) & set(own)) for best, own in every]).float() for k in RANKS}

    def statistic(weights: Float[Tensor, "R n"]) -> dict[str, Float[Tensor, " R"]]:
        return {name: weights @ each / weights.sum(1) for name, each in hits.items()}

    metrics = evaluate(statistic, len(every))
    intervals = confidence_intervals(statistic, len(every), resamples=resamples)
    scores = caption_scores(
        {str(number): best[0] for number, (best, _) in enumerate(every)},
        {str(number): own for number, (_, own) in enumerate(every)},
    )
    protocol = {
        **settings_of(method, ["scene", "text"], data, len(every), limit, precision),
        "answers": len(names),
        "questions whose answer is in no list": sum(not set(own) & set(names) for _, own in every),
    }
    return Result("Question answering", metrics | scores.metrics, intervals, protocol)


def answers_of(source: Source) -> list[str]:
    """Every answer of a source, the most frequent first: what a head is trained to tell."""
    counts: Counter[str] = Counter()
    for index in range(len(source)):
        counts.update(map(str, value_of(source.peek(index, (ANSWERS,)), (ANSWERS,))))
    return sorted(counts, key=lambda answer: (-counts[answer], answer))
