"""Gradient harmonization's claim at small scale: what it saves where texts and sounds are of other clips.

Pictures of one shape, its sound and its caption (synthetic); of two fifths the texts are another clip's, and of two
fifths, drawn apart, the sound is. A small VATT with one space for all modalities learns from them; the arms share
clips, order and first weights:

- the sum of both losses;
- gradients at odds realigned, by feature;
- the same, and samples put off by the curriculum;
- the sum, with every text and sound its own: what there is to lose.

Measured on new clips that are all aligned: the mean of both directions' recall@5 among 300, of texts and of sounds. And
on clips of the training: how well the cosine of a sample's two gradients tells misaligned from aligned ones (area under
the ROC curve; 0.5 is chance).

The paper's claim does not show: realigned gradients neither gain nor lose, the curriculum loses most of what is
learned, and cosines are no lower where samples are misaligned; see the guide. Settings are those of VATT's claims; what
is asserted is what their first run left.
"""

from functools import partial

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch.nn.functional import cosine_similarity

from collimate.data import Preparation
from collimate.training.harmonization import Curriculum, Harmonization
from collimate_video import VATT

from .experiment import Listed, compare, train
from .seen_and_heard import seen_and_heard
from .test_vatt import BATCH, CLIPS, LR, OWN, SIDE, STEPS, build, found_again

MISALIGNED = 0.4
SEEDS = range(3)

SUM, REALIGNED, PUT_OFF, ALIGNED = "sum", "realigned", "realigned, curriculum", "sum, all aligned"


def told_apart(method: VATT, clips: Listed, count: int = 512) -> float:
    """The area under the ROC curve of minus the cosine, for samples with a text or a sound of another clip."""
    prepare = Preparation(method.processors, captions=method.captions)
    samples = clips.samples[:count]
    rows = [prepare(sample) for sample in samples]
    batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    with torch.no_grad():
        embeddings = method.embed(batch)
    video = embeddings["video"].requires_grad_()
    terms = method.losses({**embeddings, "video": video}, batch)
    found = [torch.autograd.grad(term, video, retain_graph=True)[0] for term in terms.values()]
    return float(roc_auc_score([sample["misaligned"] for sample in samples], -cosine_similarity(*found).numpy()))


def arm(seed: int, harmonization: Harmonization | None = None, misaligned: float = MISALIGNED) -> dict[str, float]:
    def harmonized() -> VATT:
        method = build("joint", OWN)
        method.harmonization = harmonization
        return method

    clips = seen_and_heard("train", CLIPS, seed, SIDE, misaligned)
    method = train(harmonized, clips, seed, STEPS, BATCH, LR, clip=1.0)
    found = found_again(method, seen_and_heard("test", 300, seed, SIDE))
    return found | ({"told apart": told_apart(method, clips)} if misaligned else {})


ARMS = {
    SUM: arm,
    REALIGNED: partial(arm, harmonization=Harmonization(granularity="feature")),
    PUT_OFF: partial(arm, harmonization=Harmonization(granularity="feature", curriculum=Curriculum())),
    ALIGNED: partial(arm, misaligned=0.0),
}

pytestmark = pytest.mark.timeout(7200)  # an hour of one core, all in the fixture


@pytest.fixture(scope="module")
def outcome():
    pytest.importorskip("transformers")
    return compare("harmonization", ARMS, SEEDS)


@pytest.mark.slow
def test_misaligned_pairs_cost_something(outcome):
    for kind in ("texts", "sounds"):
        assert outcome.difference(ALIGNED, SUM, kind).low > 0


@pytest.mark.slow
def test_realigned_gradients_cost_nothing(outcome):
    for kind in ("texts", "sounds"):
        assert outcome.difference(REALIGNED, SUM, kind).high > 0


@pytest.mark.slow
def test_cosines_do_not_tell_misaligned_samples(outcome):
    """Without which the curriculum puts off the wrong ones."""
    for arm in (SUM, REALIGNED, PUT_OFF):
        assert outcome.mean(arm, "told apart") < 0.55
