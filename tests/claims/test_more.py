"""MoRE's claims at small scale: reports tell films and ECGs what is found in them, and join what no term joins.

Synthetic patients of one to three visits: films, ECGs and reports share four findings of the chest and five of the
heart; each report denies some of what is absent. The arms have the same towers, begin with the same weights, see the
same visits but for the last two, and read one sentence of a report, drawn anew each time:

- MoRE, whose text is the report of both;
- the same with a third term between films and ECGs, as MEDBind has;
- the same where film and ECG have a text each, of their own report: two sentences, where the others read one;
- MoRE with DropKey, from 0.3 down to 0;
- MoRE where half of the visits lack the film or the ECG;
- MoRE where film, ECG and report are of different visits: nothing can be learned.

Measured on patients that training has not seen: areas under the ROC curve of findings asked for by texts, the means
over those of films and of ECGs; recall@10 of texts by film and by ECG, the mean of both directions, and between films
and ECGs, of 300 visits; linear probes on a tenth of the training patients, beside the same towers with random weights;
and by how much the loss on new visits exceeds that on visits of training. The paper's figures are of real patients.

What showed is asserted below. That reports as anchors join films and ECGs, that DropKey narrows the gap, and that a
report of both teaches more than one of each does not show; see the guide.
"""

from functools import cache, partial
from typing import Any

import pytest
import torch

from collimate.data import EvalLoader
from collimate.encoders import Bert
from collimate.evaluation import evaluate_retrieval, evaluate_retrieval_between
from collimate.processing import ClipTokenizer
from collimate_medical import (
    ECGProcessor,
    ECGTransformer,
    ImageTransformer,
    MoRE,
    OneSentence,
    XRayProcessor,
    anchored_losses,
    evaluate_findings,
    evaluate_shares,
)
from collimate_medical.reading import decode_ecg
from collimate_world import ECG_FINDINGS, XRAY_FINDINGS, PatientSource

from .experiment import Listed, compare, train

SIDE, SECONDS, CONTEXT, PATIENTS, STEPS, BATCH, SEEDS = 48, 2.5, 96, 2000, 120, 128, range(3)

JOINT, THIRD, APART, DROPPED, LACKING, SHUFFLED = (
    "MoRE",
    "MoRE, films and ECGs contrasted",
    "a text for each",
    "MoRE, DropKey",
    "MoRE, half lack one",
    "MoRE, shuffled",
)


class TextForEach(MoRE):
    """Film and ECG are contrasted each with a report of its own: two losses of CLIP that share the text tower."""

    def embed(self, batch):
        return super().embed(batch) | {"ecg_text": self.encode("text", batch["ecg_text"]).pooled}

    def losses(self, embeddings, batch):
        films, hearts = (
            anchored_losses(embeddings[text], embeddings["xray"], embeddings["ecg"], self.logit_scale.exp())
            for text in ("text", "ecg_text")
        )
        return {"text_xray": films.text_xray, "text_ecg": hearts.text_ecg}


@cache
def visits(split: str, patients: int, missing: float = 0.0, shuffled: bool = False) -> Listed:
    """Drawn once."""
    each = "1-3" if split == "train" else 1
    source = PatientSource(split, patients, each, SIDE, seconds=SECONDS, missing=missing, shuffled=shuffled)
    samples = [source.read(place) for place in range(len(source))]
    for sample in samples:
        if "ecg.npz" in sample:
            sample["ecg.npz"] = decode_ecg(sample["ecg.npz"])
    return Listed(samples)


def build(method: type[MoRE], dropkey: float, xray_ecg: bool) -> MoRE:
    sizes = {"width": 64, "depth": 2, "heads": 4, "mlp_ratio": 2.0, "dropkey": dropkey, "init_std": 0.1}
    return method(
        ImageTransformer(SIDE, 8, **sizes),
        ECGTransformer(round(100 * SECONDS), stem_width=32, **sizes),
        Bert(None, 49409, CONTEXT, width=64, layers=2, heads=4, hidden=128, dropout=0.0, init_std=0.1),
        XRayProcessor(SIDE),
        ECGProcessor(seconds=SECONDS, remove_baseline=False, scale="none"),
        ClipTokenizer(CONTEXT),
        embed_dim=64,
        init_logit_scale=7.0,
        xray_ecg=xray_ecg,
    )


def arm(
    seed: int,
    method: type[MoRE] = MoRE,
    dropkey: float = 0.0,
    xray_ecg: bool = False,
    missing: float = 0.0,
    shuffled: bool = False,
) -> dict[str, float]:
    texts = {"text": OneSentence(["raw"], 1)}
    if method is TextForEach:
        texts = {"text": OneSentence(["xray"], 1), "ecg_text": OneSentence(["ecg"], 1)}
    seen, new = visits("train", PATIENTS, missing, shuffled), visits("test", 300)
    found: Any = train(
        lambda: build(method, dropkey, xray_ecg), seen, seed, STEPS, BATCH, lr=3e-3, captions=texts, warmup=0.1
    )
    between = evaluate_retrieval_between(found, new, "xray", "ecg", resamples=2).metrics
    return {
        **{f"{name}s by texts": zero_shot(found, new, name) for name in FINDINGS},
        **{f"{name}s and texts": by_texts(found, new, name) for name in FINDINGS},
        "films and ECGs": recall(between),
        **(probes(found, new) if method is MoRE and not (dropkey or xray_ecg or missing or shuffled) else {}),
        **(gap(found, new) if method is MoRE and not (xray_ecg or missing or shuffled) else {}),
    }


FINDINGS = {"xray": XRAY_FINDINGS, "ecg": ECG_FINDINGS}


def zero_shot(found: MoRE, new: Listed, modality: str) -> float:
    return evaluate_findings(found, new, f"world-{modality}", modality, resamples=2).metrics["auroc"]


def by_texts(found: MoRE, new: Listed, modality: str) -> float:
    return recall(evaluate_retrieval(found, new, modality=modality, resamples=2).metrics)


def recall(metrics: dict[str, float]) -> float:
    both = [value for name, value in metrics.items() if name.endswith("recall@10")]
    assert len(both) == 2
    return sum(both) / 2


def probes(found: MoRE, new: Listed) -> dict[str, float]:
    areas: dict[str, float] = {}
    for modality, names in FINDINGS.items():
        options = {"modality": modality, "shares": (1.0,), "supervised_steps": 0, "resamples": 2}
        probed = evaluate_shares(found, visits("train", PATIENTS // 10), new, names, **options).metrics
        areas |= {f"{modality} probe": probed["auroc@100%"], f"{modality} probe, random": probed["random/auroc@100%"]}
    return areas


@torch.no_grad()
def gap(found: MoRE, new: Listed) -> dict[str, float]:
    """How much larger the loss of new visits is, both with whole reports, in batches of 100."""
    losses = []
    for source in (new, visits("train", PATIENTS)):
        loader = EvalLoader(source, found.processors, 100, limit=300)
        losses.append(sum(float(sum(found.losses(found.embed(batch), batch).values())) for batch in loader) / 3)
    return {"gap of the loss": losses[0] - losses[1]}


ARMS = {
    JOINT: arm,
    THIRD: partial(arm, xray_ecg=True),
    APART: partial(arm, method=TextForEach),
    DROPPED: partial(arm, dropkey=0.3),
    LACKING: partial(arm, missing=0.5),
    SHUFFLED: partial(arm, shuffled=True),
}

pytestmark = pytest.mark.timeout(3600)


@pytest.fixture(scope="module")
def outcome():
    return compare("more", ARMS, SEEDS)


@pytest.mark.slow
def test_findings_are_told_by_texts_and_not_when_pairs_are_shuffled(outcome):
    for metric in ("xrays by texts", "ecgs by texts"):
        assert abs(outcome.mean(SHUFFLED, metric) - 0.5) < 0.1
        assert outcome.difference(JOINT, SHUFFLED, metric).low > 0


@pytest.mark.slow
def test_films_and_ecgs_find_each_other_if_a_term_joins_them(outcome):
    assert outcome.difference(THIRD, JOINT, "films and ECGs").low > 0


@pytest.mark.slow
def test_probes_gain_by_it(outcome):
    for modality in FINDINGS:
        probed, random = (outcome.mean(JOINT, f"{modality} probe{which}") for which in ("", ", random"))
        assert probed > random


@pytest.mark.slow
def test_visits_that_lack_one_teach_nearly_as_much(outcome):
    for metric in ("xrays by texts", "ecgs by texts"):
        assert outcome.difference(JOINT, LACKING, metric).mean < 0.1
