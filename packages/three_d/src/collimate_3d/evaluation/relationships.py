"""The scene-graph probe: how well relations can be read from a frozen model, by 3DSSG's measures.

Of each ordered pair of a scene's objects a linear probe tells which predicates hold: one logistic regression for each,
as several may. It sees the vectors of subject and object and the 13 numbers that their boxes say of each other
(`edge_numbers`). The vectors are those after the graph: its layers add what an object's neighbours say to what it was
before, so that both are there. The edges that scenes come with are kept from the graph, as they tell which pairs are
related; it runs over the nearest objects alone.

Rows, whose probes differ in what they see alone:

- the model, and `vectors`, the same without the boxes' numbers;
- `random` and `random vectors`, the same of a model of random weights;
- `descriptors`, the boxes' numbers alone, which tell nearly all where predicates are defined by boxes;
- `prior`, nothing: each predicate's share of the training pairs, of equal ones the first by name.

Objects are told by their classes' names (`collimate_3d.evaluation.objects`): softmax of the cosines, with the model's
scale. The triplets of all rows have the model's classes, so that the rows compare predicates. How ranks are counted is
told in `collimate_3d.evaluation.relation_ranking`. Classes and predicates are those of the training graphs; a test
relation of another predicate, or with an end that cannot be seen, counts as missed.

Shape legend: M objects of a scene, P pairs of these, K predicates, C classes, D width, n test relations, R resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from collimate.data import EvalLoader, Source
from collimate.data.scene_graphs import GRAPH, scene_graph_of
from collimate.evaluation.bootstrap import Statistic, confidence_intervals, evaluate
from collimate.evaluation.features import (
    Precision,
    autocast,
    encode_all,
    evaluating,
    in_order,
    place,
    progress,
    settings_of,
)
from collimate.evaluation.label_probes import label_probe
from collimate.evaluation.probes import randomized
from collimate.evaluation.report import Report
from collimate.evaluation.result import Result, number
from collimate.evaluation.zero_shot import class_vectors
from collimate_3d.evaluation.objects import ObjectNames
from collimate_3d.evaluation.relation_ranking import Ranks, Said, relation_ranks
from collimate_3d.graphs.triplets import edge_numbers
from collimate_3d.scene_graph_vlp import SceneGraphVLP
from collimate_3d.scenes.processing import unpacked_scenes

NONE = "none"  # the predicate of a pair without a relation, in 3DSSG's subset
PREDICATES, TRIPLETS, OBJECTS = (1, 3, 5), (50, 100), (1, 5, 10)  # k, as 3DSSG and SGFN report them
TRAIN_PAIRS = 20_000  # ours
MODEL, RANDOM = "", "random"
ROWS = {  # row -> whose vectors, and whether with the boxes' numbers
    MODEL: (MODEL, True),
    "vectors": (MODEL, False),
    RANDOM: (RANDOM, True),
    "random vectors": (RANDOM, False),
    "descriptors": (None, True),
}
PRIOR = "prior"


def evaluate_relationships(
    method: SceneGraphVLP,
    train: Source,
    test: Source,
    train_pairs: int = TRAIN_PAIRS,
    batch_size: int = 16,
    num_workers: int = 0,
    device: str = "auto",
    precision: Precision = "float32",
    limit: int | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> RelationshipResult:
    """Probe a frozen model for the relations of scenes' objects.

    Args:
        method: trained.
        train: samples with `scene.npz` and `graph.json`, on which the probes are fitted.
        test: the same, which are judged.
        train_pairs: of objects that are fitted, at most, drawn from all scenes.
        batch_size: scenes at a time.
        num_workers: processes that read and decode.
        device: `auto` is the first GPU where there is one, else the CPU.
        precision: of the networks.
        limit: at most so many scenes of each, spread over the data.
        resamples: of the bootstrap intervals; scenes are drawn, with all their relations.
        seed: of the random weights, the pairs that are drawn, and the scenes that choose the penalty.

    Returns:
        `<row>/predicate/top1`, ..., `mean top1` (the mean over predicates), `triplet/R@50`, ... (the mean over scenes
        that have relations), `triplet of pair/R@50`, ...; `object/top1`, ...; `above <row>/...`, by how much the model
        leads. A k that reaches all predicates or classes is left out.

    Raises:
        ValueError: no scene of either has a relation between objects that are seen.
    """
    models = {MODEL: method, RANDOM: randomized(method, seed)}
    options = (batch_size, num_workers, device, precision, limit)
    fitted, tested = (_read(models, source, *options) for source in (train, test))
    names = sorted({told.predicate for scene in fitted for told in scene.relations if told.pair is not None})
    classes = sorted({label for scene in fitted for label in scene.labels})
    for scenes, source in ((fitted, train), (tested, test)):
        if not any(told.pair is not None for scene in scenes for told in scene.relations):
            raise ValueError(
                f"{source.name}: no scene has a relation between objects that are seen; `graph.json` lists them."
            )
    labels = torch.cat([_holds(scene, names) for scene in fitted])
    groups = torch.cat([torch.full((scene.pairs.shape[1],), scene.sample) for scene in fitted])
    drawn = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))[:train_pairs].sort().values
    labels = labels[drawn].double()
    share = labels.mean(0)
    sizes = [scene.pairs.shape[1] for scene in tested]
    apart = 1e-9 * torch.arange(len(names))  # of converses as many hold; ties would count against both
    told = {PRIOR: (share - apart).expand(sum(sizes), -1)}
    for row in progress(list(ROWS), f"Probing {train.name}"):
        features, asked = (torch.cat([_features(scene, row) for scene in scenes]) for scenes in (fitted, tested))
        found = label_probe(features[drawn], labels, asked, groups[drawn], seed=seed)
        told[row] = torch.where(found.fitted, found.scores.double().sigmoid(), share)  # what holds of all, or of none
    named = {which: _classes_of(model, classes, tested, which, device, precision) for which, model in models.items()}

    judged: dict[str, Ranks] = {}
    for row in (*ROWS, PRIOR):
        parts = [
            _ranks(scene, probabilities, own, names, classes)
            for scene, probabilities, own in zip(tested, told[row].split(sizes), named[MODEL], strict=True)
        ]
        judged[row] = Ranks(*(torch.cat(each) for each in zip(*parts, strict=True)))
    relations = [(scene.sample, each.predicate) for scene in tested for each in scene.relations]
    samples = torch.tensor([sample for sample, _ in relations])
    numbers = torch.tensor([names.index(each) if each in names else -1 for _, each in relations])
    statistic = relation_statistic(judged, samples, numbers, len(names))
    metrics = evaluate(statistic, len(samples))
    intervals = confidence_intervals(statistic, len(samples), samples, resamples=resamples)

    ids = torch.cat([_numbers(scene.labels, classes) for scene in tested])
    owners = torch.cat([torch.full((len(scene.labels),), scene.sample) for scene in tested])
    object_statistic = _object_statistic({which: torch.cat(each) for which, each in named.items()}, ids)
    metrics |= evaluate(object_statistic, len(ids))
    intervals |= confidence_intervals(object_statistic, len(ids), owners, resamples=resamples)

    counts = samples.unique(return_counts=True)[1].double()
    protocol = {
        **settings_of(method, ["scene"], test, len(tested), limit, precision),
        "train data": f"{train.name}, {len(fitted)} scenes, {len(labels)} of {len(groups)} pairs",
        "test pairs": f"{sum(sizes)}, with {len(relations)} relations",
        "predicates": ", ".join(names),
        "classes": len(classes),
        "features": f"after the graph, {fitted[0].vectors[MODEL].shape[1]} wide; annotated edges are kept from it",
        "relations of no known predicate": int((numbers < 0).sum()),
        "relations with an end that is not seen": sum(each.pair is None for one in tested for each in one.relations),
        "objects of no known class": int((ids < 0).sum()),
        **{f"most that triplet/R@{k} can be": number((k / counts).clamp_max(1).mean().item()) for k in TRIPLETS},
        "intervals": f"95 %, {resamples} bootstrap resamples of scenes with their relations",
    }
    matrix = _confusion(tested, told[MODEL].split(sizes), names)
    return RelationshipResult("Relationships", metrics, intervals, protocol, names, matrix, judged[MODEL], numbers)


@dataclass
class RelationshipResult(Result):
    """How each predicate is told, beside the numbers; and for which others it is taken (K, K)."""

    names: list[str]
    matrix: Int64[Tensor, "K K"]
    ranks: Ranks
    numbers: Int64[Tensor, " n"]

    def __post_init__(self) -> None:
        self.details["per_predicate"] = [
            {
                "predicate": name,
                "relations": int(own.sum()),
                "top1": (self.ranks.predicate[own] <= 1).double().mean().item(),
            }
            for name, own in ((name, self.numbers == place) for place, name in enumerate(self.names))
        ]
        self.details["confusion"] = self.matrix.tolist()

    def add_to(self, report: Report) -> None:
        from collimate.evaluation import figures

        super().add_to(report)
        shown = [name for name in self.metrics if name.startswith(("predicate/", "triplet"))]
        rows = [
            [row or "model", *(number(self.metrics[f"{row}/{name}" if row else name]) for name in shown)]
            for row in (*ROWS, PRIOR)
        ]
        report.add_table(["probe of", *shown], rows, "What the probe sees")
        caption = "True predicate (rows), and the likeliest of it and those that do not hold of its pair (columns)."
        report.add_figure(figures.confusion(self.matrix, self.names), caption)
        rows = [[each["predicate"], each["relations"], number(each["top1"])] for each in self.details["per_predicate"]]
        report.add_table(["predicate", "relations", "top1"], rows, "Per predicate")


def relation_statistic(
    judged: Mapping[str, Ranks], samples: Int64[Tensor, " n"], numbers: Int64[Tensor, " n"], predicates: int
) -> Statistic:
    """Shares of relations within ranks k, of several rows, and by how much the first leads; by weights of relations.

    Args:
        judged: row -> ranks of the same relations; the first has no name before its metrics.
        samples: the scene of each relation. `triplet/R@k` is a mean over scenes, of equal weight each.
        numbers: the predicate of each; -1 for one that is not known, which counts in no mean over predicates.
        predicates: K.
    """
    counts = samples.unique(return_inverse=True, return_counts=True)
    of_scene = 1 / counts[2][counts[1]].float()
    own = one_hot(numbers + 1, predicates + 1)[:, 1:].float()
    tops = [k for k in PREDICATES if k < predicates or k == 1]

    def of_row(ranks: Ranks, weights: Float[Tensor, "R n"]) -> dict[str, Float[Tensor, " R"]]:
        found = {f"predicate/top{k}": _share(weights, ranks.predicate <= k) for k in tops}
        first = (ranks.predicate <= 1).float()
        found["predicate/mean top1"] = (((weights * first) @ own) / (weights @ own)).nanmean(1)
        found |= {f"triplet/R@{k}": _share(weights * of_scene, ranks.of_scene <= k) for k in TRIPLETS}
        return found | {f"triplet of pair/R@{k}": _share(weights, ranks.of_pair <= k) for k in TRIPLETS}

    def statistic(weights: Float[Tensor, "R n"]) -> dict[str, Float[Tensor, " R"]]:
        first, *others = ((row, of_row(ranks, weights)) for row, ranks in judged.items())
        found = dict(first[1])
        for row, own in others:
            found |= {f"{row}/{name}": value for name, value in own.items()}
        for row, own in others:
            found |= {
                f"above {row}/{name}": first[1][name] - own[name]
                for name in ("predicate/top1", f"triplet/R@{TRIPLETS[0]}")
            }
        return found

    return statistic


# Scenes -----------------------------------------------------------------------------------------------------------


class Told(NamedTuple):
    """A relation of a graph: the place of its pair, None where an end is not seen; and the predicate."""

    pair: int | None
    predicate: str


class PairedScene(NamedTuple):
    """A scene as probes see it; on the CPU.

    Attributes:
        sample: its place in the source.
        labels: of the objects that are seen.
        pairs: subject and object of every ordered pair of these.
        descriptors: what the boxes of each pair say of each other.
        vectors: model -> the objects after its graph.
        objects: model -> the objects before its graph, in the space of words.
        relations: each once.
    """

    sample: int
    labels: list[str]
    pairs: Int64[Tensor, "2 P"]
    descriptors: Float[Tensor, "P 13"]
    vectors: dict[str, Float[Tensor, "M D"]]
    objects: dict[str, Float[Tensor, "M E"]]
    relations: list[Told]


def _read(
    models: Mapping[str, SceneGraphVLP],
    source: Source,
    batch_size: int,
    num_workers: int,
    device: str,
    precision: Precision,
    limit: int | None,
) -> list[PairedScene]:
    """Every scene of a source, encoded by all models in one pass. All ranks get all of them."""
    scenes: Any = models[MODEL].processors["scene"]
    where, *_ = (place(model, device) for model in models.values())
    loader = EvalLoader(source, {"scene": scenes}, batch_size, num_workers, [GRAPH], limit=limit)
    found: list[PairedScene] = []
    index: list[int] = []
    for batch in progress(loader, f"Encoding {source.name}"):
        encoded = {name: _encoded(model, batch["scene"].to(where), where, precision) for name, model in models.items()}
        seen = unpacked_scenes(batch["scene"])
        for row in batch["valid"].nonzero()[:, 0].tolist():
            given = seen.given[row]
            vectors = {name: nodes[row, given] for name, (nodes, _) in encoded.items()}
            objects = {name: each[row, given] for name, (_, each) in encoded.items()}
            sample = int(batch["index"][row])
            index.append(sample)
            found.append(
                _paired(
                    sample, seen.ids[row, given].tolist(), seen.boxes[row, given], batch[GRAPH][row], vectors, objects
                )
            )
    return in_order(found, torch.tensor(index, dtype=torch.int64))


def _encoded(
    model: SceneGraphVLP, batch: Tensor, where: torch.device, precision: Precision
) -> tuple[Float[Tensor, "B M D"], Float[Tensor, "B M E"]]:
    """Objects after the graph, and before it in the space of words; of scenes without the edges they came with."""
    with evaluating(model), torch.inference_mode(), autocast(where, precision):
        scene = unpacked_scenes(batch)
        scene = scene._replace(related=torch.zeros_like(scene.related))
        objects = model.objects(scene)
        return model.nodes(scene, objects).float().cpu(), model.projections["object"](objects).float().cpu()


def _paired(
    sample: int,
    ids: list[int],
    boxes: Float[Tensor, "M 6"],
    raw: Any,
    vectors: dict[str, Tensor],
    objects: dict[str, Tensor],
) -> PairedScene:
    graph = scene_graph_of(raw)
    labels = {each.id: each.label for each in graph.objects}
    pairs = (~torch.eye(len(ids), dtype=torch.bool)).nonzero().T
    places = {(ids[i], ids[j]): number for number, (i, j) in enumerate(pairs.T.tolist())}
    told = [
        Told(places.get((each.subject, each.object)), each.predicate)
        for each in dict.fromkeys(graph.relations)
        if each.predicate != NONE
    ]
    own = [labels.get(each, "") for each in ids]
    return PairedScene(sample, own, pairs, edge_numbers(boxes[None], pairs), vectors, objects, told)


def _features(scene: PairedScene, row: str) -> Float[Tensor, "P F"]:
    """What the probe of a row sees of each pair."""
    which, described = ROWS[row]
    parts = [] if which is None else list(scene.vectors[which][scene.pairs])
    return torch.cat([*parts, *([scene.descriptors] if described else [])], 1)


def _holds(scene: PairedScene, names: Sequence[str]) -> Bool[Tensor, "P K"]:
    """Which predicates hold of each pair."""
    found = torch.zeros(scene.pairs.shape[1], len(names), dtype=torch.bool)
    for pair, predicate in scene.relations:
        if pair is not None and predicate in names:
            found[pair, names.index(predicate)] = True
    return found


def _numbers(labels: Sequence[str], classes: Sequence[str]) -> Int64[Tensor, " M"]:
    places = {name: number for number, name in enumerate(classes)}
    return torch.tensor([places.get(label, -1) for label in labels], dtype=torch.int64)


def _classes_of(
    model: SceneGraphVLP,
    classes: Sequence[str],
    scenes: Sequence[PairedScene],
    which: str,
    device: str,
    precision: Precision,
) -> list[Float[Tensor, "M C"]]:
    """Of each scene's objects the probability of each class, by its name."""
    encoded = encode_all(ObjectNames(model), "text", list(classes), device=device, precision=precision).pooled
    vectors = class_vectors(encoded, range(len(classes)), len(classes))
    scale = model.word_logit_scale.detach().float().cpu().exp()
    return [(scale * normalize(each.objects[which], dim=-1) @ vectors.T).double().softmax(1) for each in scenes]


# Judging ----------------------------------------------------------------------------------------------------------


def _ranks(
    scene: PairedScene,
    probabilities: Float[Tensor, "P K"],
    classes: Float[Tensor, "M C"],
    names: Sequence[str],
    class_names: Sequence[str],
) -> Ranks:
    """Of each relation of a scene, in order; inf for those that cannot be found."""
    asked = [each.pair is not None and each.predicate in names for each in scene.relations]
    relations = [
        (each.pair, names.index(each.predicate)) for each, can in zip(scene.relations, asked, strict=True) if can
    ]
    said = Said(
        probabilities,
        classes,
        scene.pairs,
        _numbers(scene.labels, class_names),
        torch.tensor(relations, dtype=torch.int64).reshape(-1, 2),
    )
    found = Ranks(*(torch.full((len(asked),), torch.inf, dtype=torch.float64) for _ in Ranks._fields))
    for every, ranks in zip(found, relation_ranks(said), strict=True):
        every[torch.tensor(asked, dtype=torch.bool)] = ranks
    return found


def _object_statistic(named: Mapping[str, Float[Tensor, "N C"]], ids: Int64[Tensor, " N"]) -> Statistic:
    """Shares of objects whose class is among the k likeliest; of equally likely ones the others come first."""
    tops = [k for k in OBJECTS if k < len(next(iter(named.values()))[0]) or k == 1]
    ranks = {}
    for which, scores in named.items():
        own = scores.gather(1, ids.clamp_min(0)[:, None])
        ranks[which] = (scores >= own).sum(1).double().masked_fill(ids < 0, torch.inf)

    def statistic(weights: Float[Tensor, "R N"]) -> dict[str, Float[Tensor, " R"]]:
        return {
            f"{which}/object/top{k}".lstrip("/"): _share(weights, own <= k)
            for which, own in ranks.items()
            for k in tops
        }

    return statistic


def _share(weights: Float[Tensor, "R n"], which: Bool[Tensor, " n"]) -> Float[Tensor, " R"]:
    return weights @ which.float() / weights.sum(1)


def _confusion(
    scenes: Sequence[PairedScene], told: Sequence[Float[Tensor, "P K"]], names: Sequence[str]
) -> Int64[Tensor, "K K"]:
    """Of each true predicate, how often which was likeliest of it and those that do not hold of its pair."""
    matrix = torch.zeros(len(names), len(names), dtype=torch.int64)
    for scene, probabilities in zip(scenes, told, strict=True):
        holds = _holds(scene, names)
        pair, predicate = holds.nonzero(as_tuple=True)
        others = holds[pair] & ~one_hot(predicate, len(names)).bool()
        best = probabilities[pair].masked_fill(others, -1).argmax(1)
        matrix.index_put_((predicate, best), torch.ones_like(best), accumulate=True)
    return matrix
