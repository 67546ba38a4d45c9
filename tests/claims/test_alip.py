"""ALIP's claims at small scale: captions help much beside texts that are often wrong, and the gates know which are.

Pictures of one object each. The raw text names its colour and shape, but for 40 % of the pictures it is another
picture's; the caption names all its attributes, and is another picture's for 10 %. The arms see the same pictures and
texts, and begin with the same weights:

- CLIP on the raw texts, and on the captions;
- both texts with all weights 1 (ALIP with gammas of 0), and with ALIP's gates;
- these two again where every text and caption is true.

The gates are the published ones, but that their history begins with the first batch: the runs are short. Measured on
new pictures: retrieval by true captions (the mean of both directions' recall@1 among 400), zero-shot accuracy over all
64 classes, of which eight never occur in training, and how well the weights tell wrong texts from true ones.
"""

from functools import cache, partial

import numpy as np
import pytest

from collimate.data import CaptionChoice, OneCaption, Source
from collimate.evaluation import evaluate_retrieval, evaluate_zero_shot
from collimate_vision_language import ALIP, CLIP
from collimate_vision_language.consistency import evaluate_consistency
from collimate_world import Picture, WorldSource, caption

from .experiment import compare, small_image_tower, small_towers, train

SIDE, CONTEXT, SCENES, STEPS = 32, 14, 20000, 400
WRONG = (0.4, 0.1)
"""The shares of raw texts and of captions that belong to another picture."""

RAW, CAPTIONS = "CLIP, raw texts", "CLIP, captions"
PLAIN, GATED = "both texts, weights 1", "both texts, gates"
TRUE = ", all texts true"


class Scenes(Source):
    """Scenes of one object, with texts that are swapped for another scene's at known rates."""

    name = "scenes"

    def __init__(self, length: int, wrong: tuple[float, float], seed: int) -> None:
        world = WorldSource("train", length=length, size=SIDE, seed=seed)
        draws = np.random.default_rng(seed)
        self.samples = []
        for place in range(length):
            entries = []
            for kind, text_kind, rate in (("raw", "short", wrong[0]), ("synthetic", "synthetic", wrong[1])):
                true = draws.random() >= rate
                scene = world.scene(place if true else int(draws.integers(length)))
                entries.append({"text": caption(scene, text_kind).text, "kind": kind, "true": bool(true)})
            self.samples.append({"png": Picture(world.scene(place), SIDE).pixels, "captions.json": entries})

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, index: int) -> dict:
        return {"__key__": str(index), "__source__": self.name, **self.samples[index]}


@cache
def scenes(wrong: tuple[float, float], seed: int = 0, length: int = SCENES) -> Scenes:
    return Scenes(length, wrong, seed)


def parts() -> dict:
    return small_towers(CONTEXT, SIDE) | {"image_encoder": small_image_tower(96, 16)}


def clip(seed: int, text: CaptionChoice) -> dict[str, float]:
    method = train(lambda: CLIP(**parts(), embed_dim=64), scenes(WRONG), seed, STEPS, captions={"text": text})
    return quality(method)


def alip(seed: int, gamma: float, wrong: tuple[float, float]) -> dict[str, float]:
    settings = {"history_init": "first_batch", "gamma_sample": gamma, "gamma_pair": gamma}
    method = train(lambda: ALIP(**parts(), embed_dim=64, **settings), scenes(wrong), seed, STEPS)
    if not gamma or wrong != WRONG:
        return quality(method)
    found = evaluate_consistency(method, scenes(WRONG, seed=1, length=1000), resamples=2).metrics
    return quality(method) | {
        "auroc, wrong texts": found["wrong_texts/pair_weight_auroc"],
        "auroc, wrong captions": found["wrong_captions/pair_weight_auroc"],
        "weight of true texts": found["true_texts/pair_weight"],
        "weight of wrong texts": found["wrong_texts/pair_weight"],
    }


def quality(method) -> dict[str, float]:
    described = WorldSource("test", length=400, size=SIDE, text="synthetic")
    named = WorldSource("test", length=1280, size=SIDE)
    recalls = evaluate_retrieval(method, described, resamples=2).metrics
    return {
        "retrieval": (recalls["image_retrieval_recall@1"] + recalls["text_retrieval_recall@1"]) / 2,
        "zero-shot": evaluate_zero_shot(method, named, templates=["one {}", "{}"], resamples=2).metrics["acc1"],
    }


ARMS = {
    RAW: partial(clip, text=OneCaption(["raw"])),
    CAPTIONS: partial(clip, text=OneCaption(["synthetic"])),
    PLAIN: partial(alip, gamma=0.0, wrong=WRONG),
    GATED: partial(alip, gamma=2.0, wrong=WRONG),
    PLAIN + TRUE: partial(alip, gamma=0.0, wrong=(0.0, 0.0)),
    GATED + TRUE: partial(alip, gamma=2.0, wrong=(0.0, 0.0)),
}

pytestmark = pytest.mark.timeout(3600)  # ten minutes on two quiet cores, all in the fixture


@pytest.fixture(scope="module")
def outcome():
    return compare("alip", ARMS)


@pytest.mark.slow
def test_captions_beside_wrong_texts_help_much(outcome):
    """The paper's largest gain: 34.9 to 68.7 on Flickr30k."""
    assert outcome.difference(PLAIN, RAW, "retrieval").low > 0.1


@pytest.mark.slow
def test_gates_help_where_texts_are_wrong_and_show_no_harm_where_they_are_true(outcome):
    """The paper's second gain: 68.7 to 70.5. The direction agrees here, but five seeds do not settle it."""
    for metric in ("retrieval", "zero-shot"):
        assert outcome.difference(GATED, PLAIN, metric).mean > 0
        assert outcome.difference(GATED + TRUE, PLAIN + TRUE, metric).high > 0


@pytest.mark.slow
def test_weights_tell_wrong_texts_from_true_ones(outcome):
    values = outcome.values[GATED]
    assert outcome.mean(GATED, "auroc, wrong texts") > 0.8
    assert outcome.mean(GATED, "auroc, wrong captions") > 0.8
    assert max(values["weight of wrong texts"]) < min(values["weight of true texts"])
