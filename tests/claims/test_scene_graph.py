"""SG-VLP's claim at small scale: the graph helps exactly where a sentence needs a relation.

Rooms of four to six coloured solids (synthetic). Half of the sentences give the target a name of its own; the others
need another object to tell it from those of its class: `the cube closest to the ball`. The arms have the same towers,
see the same rooms and sentences, learn by the terms `word`, `sentence` and `grounding` of `SceneGraphVLP`, where an
object's score is the cosine alone, and begin with the same weights:

- with the graph;
- with the graph, whose edges end at objects drawn at random from all rooms of the batch: each object hears of as many
  relations, and they are not its own; the network is as deep, and still knows where an object itself lies;
- without a graph: a sentence is compared with what an object is and where it lies.

Measured on new rooms: how often the nearest object is the target, by kind of sentence. `closest` are those of nearness,
of which an object's place in the room tells nothing; of the others, `the leftmost cube` is often the one `left of` the
ball, whatever the ball.
"""

from functools import cache, partial

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from collimate.data import EvalLoader, Source
from collimate.data.referrals import referrals_of
from collimate.encoders import Encoder
from collimate.encoding import Encoding
from collimate_3d.graphs import NoGraph, TripletGraph
from collimate_3d.graphs.triplets import convolved, edge_numbers, edges_between
from collimate_3d.language import GRUTextEncoder, WordTokenizer, count_words
from collimate_3d.scene_graph_vlp import SceneGraphVLP
from collimate_3d.scene_graph_vlp.objectives import Referred, referral_loss
from collimate_3d.scenes import SceneProcessor
from collimate_3d.scenes.processing import unpacked_referrals, unpacked_scenes
from collimate_world import ROOM_CLASSES, RoomSource

from .experiment import compare, train

OBJECTS, POINTS, SENTENCES, ROOMS, NEW = 6, 8, 8, 3000, 300
STEPS, BATCH, WIDTH, LR = 450, 32, 64, 6e-3
WEIGHTS = {"word": 0.3, "sentence": 0.3, "grounding": 1.0}
SEEDS = range(5)
SPLIT = "test"  # settings were chosen on `val`, with other seeds

GRAPH, SHUFFLED, NONE = "graph", "shuffled graph", "no graph"


class Held(Source):
    """Rooms that are drawn once."""

    def __init__(self, split: str, length: int) -> None:
        rooms = RoomSource(split, f"4-{OBJECTS}", length, POINTS, SENTENCES)
        self.name, self.samples = rooms.name, [rooms.read(place) for place in range(length)]

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, index: int) -> dict:
        return self.samples[index]


class Remembering:
    """A processor that makes an input once, as rooms here are seen again and again."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.made = {}

    def __call__(self, raw):
        if id(raw) not in self.made:
            self.made[id(raw)] = super().__call__(raw)
        return self.made[id(raw)]


class Moments(Encoder):
    """An object by the mean and the spread of its points and colours: all that tells one solid from another here."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.layers = torch.nn.Sequential(torch.nn.Linear(12, width), torch.nn.ReLU(), torch.nn.Linear(width, width))

    def forward(self, inputs, mask=None):
        return Encoding(self.layers(torch.cat([inputs.mean(1), 3 * inputs.std(1)], 1)))

    def example(self):
        return torch.rand(2, POINTS, 6)


class ShuffledGraph(TripletGraph):
    """The graph with its edges' objects drawn anew at each step, from any room.

    Drawn from the same room they would still tell much: objects carry where they lie, and every object of a small room
    hears every other.
    """

    def forward(self, nodes, boxes, given, related):
        edges = edges_between(boxes, given, related, self.k)
        features = self.edge_features(edge_numbers(boxes, edges))
        told = torch.stack([edges[0], edges[1, torch.randperm(edges.shape[1])]])
        flat, _ = convolved(self.gconvs, nodes.flatten(0, 1), told, features)
        return self.norm(flat).unflatten(0, nodes.shape[:2])


class Contrasts(SceneGraphVLP):
    """The method without the terms that the claim is not about, and without layers that read sentences."""

    modalities = ("scene", "referrals")
    captions = {}  # noqa: RUF012

    def embed(self, batch):
        scene, told = unpacked_scenes(batch["scene"]), unpacked_referrals(batch["referrals"])
        objects, text = self.objects(scene), self.read(told.ids)
        nodes = self.nodes(scene, objects)
        return {
            "object": self.projections["object"](objects),
            "node": self.projections["node"](nodes),
            "matching": self.sentence_logit_scale.exp() * self.cosines(nodes, text),
            "word": self.projections["word"](text.tokens).unflatten(0, told.given.shape),
            "sentence": self.projections["sentence"](text.pooled).unflatten(0, told.given.shape),
        }

    def losses(self, embeddings, batch):
        scene, told = unpacked_scenes(batch["scene"]), unpacked_referrals(batch["referrals"])
        unit = {name: normalize(embeddings[name], dim=-1) for name in ("object", "node", "word", "sentence")}
        target = (told.target[:, :, None] == scene.ids[:, None]) & told.given[:, :, None]
        scenes, sentences, places = target.nonzero(as_tuple=True)
        referred = Referred(unit["sentence"][scenes, sentences], scenes, places, scene.labels[scenes, places])
        scale = self.sentence_logit_scale.exp()
        matching = embeddings["matching"][scenes, sentences].masked_fill(~scene.given[scenes], -torch.inf)
        return {
            "word": self._named_losses(unit, scene, told),
            "sentence": referral_loss(referred, unit["node"], scene.given, scene.labels, scale),
            "grounding": cross_entropy(matching, places),
        }


held = cache(Held)


@cache
def vocabulary() -> list[str]:
    return count_words(one["text"] for sample in held("train", ROOMS).samples for one in sample["referrals.json"])


def build(graph) -> Contrasts:
    words = vocabulary()
    method = Contrasts(
        Moments(WIDTH),
        GRUTextEncoder(len(words) + 4, 48, 2 * WIDTH, bidirectional=True),
        graph(WIDTH),
        SceneProcessor(ROOM_CLASSES, OBJECTS, POINTS),
        WordTokenizer(words),
        embed_dim=WIDTH,
        sentences=SENTENCES,
        sentence_length=12,
        dropout=0.0,
    )
    for processor in (method.processors["scene"], method.processors["referrals"]):
        kind = type(processor)
        processor.__class__ = type(kind.__name__, (Remembering, kind), {})
        processor.made = {}
    return method


def kind_of(referral) -> str:
    if not referral.needs_relation:
        return "by name"
    return "closest" if " closest to " in referral.text or " farthest from " in referral.text else "other relations"


@torch.no_grad()
def accuracies(method: Contrasts) -> dict[str, float]:
    """How often the object nearest to a sentence is its target, by kind of sentence."""
    processors = {name: method.processors[name] for name in ("scene", "referrals")}
    right: dict[str, list[float]] = {"by name": [], "by relation": [], "closest": [], "other relations": []}
    for batch in EvalLoader(held(SPLIT, NEW), processors, 50, also=["referrals.json"]):
        _, cosine = method.ground(batch["scene"], batch["referrals"])
        scene, told = unpacked_scenes(batch["scene"]), unpacked_referrals(batch["referrals"])
        for row, raw in enumerate(batch["referrals.json"]):
            for place, referral in enumerate(referrals_of(raw)):
                found = scene.ids[row, cosine[row, place].argmax()] == told.target[row, place]
                right[kind_of(referral)].append(float(found))
                if referral.needs_relation:
                    right["by relation"].append(float(found))
    return {kind: sum(hits) / len(hits) for kind, hits in right.items()}


def arm(seed: int, graph) -> dict[str, float]:
    trained = train(
        lambda: build(graph), held("train", ROOMS), seed, STEPS, BATCH, LR, weight_decay=0.02, loss_weights=WEIGHTS
    )
    return accuracies(trained)


def connected(kind: type, width: int) -> TripletGraph:
    return kind(width, width, width)


ARMS = {
    GRAPH: partial(arm, graph=partial(connected, TripletGraph)),
    SHUFFLED: partial(arm, graph=partial(connected, ShuffledGraph)),
    NONE: partial(arm, graph=NoGraph),
}

pytestmark = pytest.mark.timeout(3600)


@pytest.fixture(scope="module")
def outcome():
    return compare("scene_graph", ARMS, SEEDS)


@pytest.mark.slow
def test_the_graph_helps_where_a_relation_is_needed(outcome):
    """Over the shuffled graph its lead is in the mean, and just not beyond the seeds' spread; see the guide."""
    assert outcome.difference(GRAPH, NONE, "by relation").low > 0
    assert outcome.difference(GRAPH, SHUFFLED, "by relation").mean > 0


@pytest.mark.slow
@pytest.mark.parametrize("control", [SHUFFLED, NONE])
def test_it_does_not_where_a_name_is_enough(outcome, control):
    assert abs(outcome.difference(GRAPH, control, "by name").mean) < 0.02


@pytest.mark.slow
def test_most_where_place_tells_nothing(outcome):
    """What is closest is told by edges; the shuffled graph tells a part of it, likely by the object's own place."""
    gain = {kind: outcome.difference(GRAPH, SHUFFLED, kind).mean for kind in ("closest", "other relations")}
    assert gain["other relations"] > 0
    assert gain["closest"] > gain["other relations"]
