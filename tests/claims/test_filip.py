"""FILIP's claims at small scale: comparing tokens tells captions apart that share most words, and finds what they name.

Scenes of two to four objects, whose captions name colour and shape of each in any order. The arms have the same towers,
see the same pictures and texts, and begin with the same weights:

- CLIP, which compares what the towers pool;
- FILIP, which compares their tokens;
- FILIP where the padding of texts takes part as if it were words, as in ColBERT: the paper's own ablation.

Measured on new pictures: retrieval (the mean of both directions' recall@1 among 300); whether a caption beats one that
is wrong in one attribute, or has the colours of two objects exchanged; and whether the patch that fits an object's name
best lies inside its box, next to the share of the picture that boxes take. For CLIP, patches are read out by their
cosine with the text: its tower's patches, projected as its pooled vector is.
"""

from functools import cache, partial

import pytest

from collimate.data import Source
from collimate.encoders import OpenClipTextEncoder
from collimate.evaluation import evaluate_compositional, evaluate_localization, evaluate_retrieval
from collimate_vision_language import CLIP, FILIP
from collimate_world import WorldSource

from .experiment import compare, small_image_tower, small_towers, train

SIDE, CONTEXT, SCENES, STEPS, BATCH = 32, 24, 8000, 700, 96
SCALE = 47.8
"""Where the scale begins for FILIP: the authors' employer's (mindspore-lab/mindformers). With CLIP's 14.3 it learns far
more slowly here, because an object is in few of the patches over which the mean is taken. CLIP gains nothing by it."""

POOLED, TOKENS, PADDED = "CLIP", "FILIP", "FILIP, padding among the words"


class Held(Source):
    """Scenes that are drawn once; their regions are phrased by name, the only words that captions have."""

    def __init__(self, split: str, length: int) -> None:
        world = WorldSource(split, objects="2-4", length=length, size=SIDE, negatives=split != "train")
        self.name, self.samples = world.name, [world.read(place) for place in range(length)]
        for sample in self.samples:
            sample["regions.json"] = [region | {"phrase": region["name"]} for region in sample["regions.json"]]

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, index: int) -> dict:
        return self.samples[index]


class PaddingAmongWords(FILIP):
    """FILIP without the mask of texts."""

    def forward(self, modality, inputs, mask=None):
        encoding = super().forward(modality, inputs, mask)
        return encoding.replace(mask=None, pooled=encoding.tokens.mean(1))


held = cache(Held)


def parts() -> dict:
    words = OpenClipTextEncoder(context_length=CONTEXT, width=64, heads=4, layers=1, mlp_ratio=0.25)
    towers = small_towers(CONTEXT, SIDE)
    return towers | {"image_encoder": small_image_tower(48), "text_encoder": words}


def arm(seed: int, method: type, scale: float = SCALE) -> dict[str, float]:
    settings = {"embed_dim": 64, "init_logit_scale": scale}
    trained = train(lambda: method(**parts(), **settings), held("train", SCENES), seed, STEPS, BATCH)
    new = held("test", 300)
    recalls = evaluate_retrieval(trained, new, resamples=2).metrics
    right = evaluate_compositional(trained, new, resamples=2).metrics
    found = evaluate_localization(trained, new, resamples=2).metrics
    return {
        "retrieval": (recalls["image_retrieval_recall@1"] + recalls["text_retrieval_recall@1"]) / 2,
        **{kind: right[f"paired_accuracy/{kind}"] for kind in ("replace_colour", "replace_shape", "swap_colour")},
        **{name: found[name] for name in ("pointing_accuracy", "area_share")},
    }


ARMS = {
    POOLED: partial(arm, method=CLIP, scale=1 / 0.07),
    TOKENS: partial(arm, method=FILIP),
    PADDED: partial(arm, method=PaddingAmongWords),
}

pytestmark = pytest.mark.timeout(3600)  # ten minutes on two quiet cores, all in the fixture


@pytest.fixture(scope="module")
def outcome():
    return compare("filip", ARMS)


@pytest.mark.slow
def test_tokens_find_more_than_pooled_vectors(outcome):
    """The paper's ablation: late interaction alone, 30.4 to 34.3 on ImageNet."""
    assert outcome.difference(TOKENS, POOLED, "retrieval").mean > 0


@pytest.mark.slow
def test_most_where_captions_share_their_words(outcome):
    assert outcome.difference(TOKENS, POOLED, "swap_colour").low > 0
    assert outcome.difference(TOKENS, POOLED, "replace_shape").mean > 0


@pytest.mark.slow
def test_the_best_patch_lies_in_the_box_of_what_is_named(outcome):
    assert outcome.difference(TOKENS, POOLED, "pointing_accuracy").low > 0.1
    assert outcome.mean(TOKENS, "pointing_accuracy") > 3 * outcome.mean(TOKENS, "area_share")


@pytest.mark.slow
def test_padding_that_takes_part_is_of_no_use(outcome):
    """In the paper it harms: patches align to it. Here the direction agrees, but five seeds do not settle it."""
    for metric in ("retrieval", "pointing_accuracy"):
        assert outcome.difference(TOKENS, PADDED, metric).mean > 0
