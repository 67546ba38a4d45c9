"""3RScan with the scene graphs of 3DSSG: `scenes-3rscan:/data/3RScan?relationships=relationships.json`.

Wald et al. 2019, RIO, arXiv 1908.06109 (3RScan); Wald et al. 2020, 3DSSG, arXiv 2004.03967. As their authors lay them
out:

- `<root>/<scan>/labels.instances.annotated.v2.ply`: vertices with `objectId`; before it goes
  `labels.instances.align.annotated.v2.ply`, where the user has made rescans lie as their reference does;
- `relationships.json`: {scans: [{scan, relationships: [[subject, object, predicate id, predicate], ...]}]}, or the
  subset's `relationships_train.json`, whose scans are cut into parts (`split`) with `objects` {id: label} of their own;
- `objects.json`, which may lack: {scans: [{scan, objects: [{id, label, attributes}]}]}, for attributes and labels.

Ids are strings as keys and numbers in relations. A pair may have several predicates. `semseg.v2.json` beside a scan has
labels, where neither of the two does. Boxes are the axis-aligned hulls of points: scans lie as they were taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from collimate.data import CorruptSample, Sample, Source
from collimate.data.referrals import Referral, scene_caption, statement
from collimate.data.scene_graphs import GraphRelation, SceneGraph, scene_arrays
from collimate_3d.scenes.reading import graph_from_points, read_json, read_vertices

PLY = ("labels.instances.align.annotated.v2.ply", "labels.instances.annotated.v2.ply")
ATTRIBUTES = ("color",)  # ours: of 3DSSG's kinds of attributes, the one that stands well before a label
NONE = "none"  # the predicate of a pair without a relation, in the subset


class ThreeDSSGSource(Source):
    """Scans, or parts of them, as samples: `scene.npz`, `graph.json`, `referrals.json` and `txt`.

    Sentences are statements of the graph, `the chair is standing on the floor`, one a relation; the caption counts what
    is there.

    Args:
        root: the folder of the scans.
        relationships: the file of relations; beside `root` unless it is a path.
        objects: the file of objects; None where there is none.
        scans: a .txt file with an id a line, such as a split's; all that have relations if None.
        sentences: of each sample at most; the first ones.
        attributes: whether objects are called by their colours, too.

    Raises:
        FileNotFoundError: a file is missing, or every scan is.
        ValueError: a file is not of its form.
    """

    def __init__(
        self,
        root: str,
        relationships: str = "relationships.json",
        objects: str | None = None,
        scans: str | None = None,
        sentences: int = 64,
        attributes: bool = False,
    ) -> None:
        self.root, self.sentences, self.attributes = Path(root), sentences, attributes
        self.name = f"scenes-3rscan:{root}"
        path = self._beside(relationships)
        found = read_json(path)
        if not isinstance(found, dict) or not isinstance(found.get("scans"), list):
            raise ValueError(f"{path} is no file of 3DSSG's relationships: it has no list `scans`.")
        wanted = None if scans is None else set(Path(scans).read_text(encoding="utf-8").split())
        listed = [each for each in found["scans"] if wanted is None or each["scan"] in wanted]
        self.parts = [each for each in listed if self._ply(each["scan"]) is not None]
        if not self.parts:
            raise FileNotFoundError(
                f"{self.root} holds none of the {len(listed)} scans of {path}: expected <scan>/{PLY[1]}, with the "
                "points' `objectId`."
            )
        self.missing = len(listed) - len(self.parts)
        self._objects = (
            {}
            if objects is None
            else {
                scan["scan"]: {int(each["id"]): each for each in scan["objects"]}
                for scan in read_json(self._beside(objects))["scans"]
            }
        )

    def __len__(self) -> int:
        return len(self.parts)

    def read(self, index: int) -> Sample:
        part = self.parts[index]
        key = f"{part['scan']}-{part.get('split', 0)}"
        try:
            points = read_vertices(self._ply(part["scan"]) or self.root, "objectId")
            labels = self._labels(part)
        except (ValueError, FileNotFoundError, KeyError) as error:
            raise CorruptSample(f"{self.name}: {key}", "scan cannot be read", str(error)) from error
        graph = graph_from_points(
            points.xyz, points.field, labels, self._words(part, labels) if self.attributes else None, relations_of(part)
        )
        if not graph.objects:
            raise CorruptSample(f"{self.name}: {key}", "no object has points", f"of {len(labels)} in the annotation")
        told = [statement(graph, relation) for relation in graph.relations[: self.sentences]]
        return scene_sample(key, self.name, graph, points, told)

    def _beside(self, name: str) -> Path:
        return Path(name) if Path(name).is_file() or Path(name).is_absolute() else self.root / name

    def _ply(self, scan: str) -> Path | None:
        return next((path for name in PLY if (path := self.root / scan / name).is_file()), None)

    def _labels(self, part: Mapping[str, Any]) -> dict[int, str]:
        """Of all objects of a part; of the subset, those that the part names."""
        if part.get("objects"):
            return {int(number): str(label) for number, label in part["objects"].items()}
        if part["scan"] in self._objects:
            return {number: str(each["label"]) for number, each in self._objects[part["scan"]].items()}
        groups = read_json(self.root / part["scan"] / "semseg.v2.json")["segGroups"]
        return {int(each["objectId"]): str(each["label"]) for each in groups}

    def _words(self, part: Mapping[str, Any], labels: Mapping[int, str]) -> dict[int, tuple[str, ...]]:
        known = self._objects.get(part["scan"], {})
        return {
            number: tuple(
                word
                for kind in ATTRIBUTES
                for word in (known.get(number, {}).get("attributes") or {}).get(kind, [])[:1]
            )
            for number in labels
        }


def relations_of(part: Mapping[str, Any]) -> list[GraphRelation]:
    """The relations of one scan, or part of one: rows of subject, object, the predicate's number, the predicate.

    Raises:
        ValueError: a row is of another form.
    """
    found = []
    for row in part.get("relationships", ()):
        if len(row) != 4 or not isinstance(row[3], str):
            raise ValueError(f"{part.get('scan')}: a relation is [subject, object, number, predicate], not {row}.")
        if row[3] != NONE:
            found.append(GraphRelation(int(row[0]), row[3], int(row[1])))
    return found


def scene_sample(
    key: str, source: str, graph: SceneGraph, points: tuple[Any, Any, Any], sentences: list[Referral]
) -> Sample:
    """A scene as a sample, its caption counting what is there."""
    return {
        "__key__": key,
        "__source__": source,
        "scene.npz": scene_arrays(graph, *points),
        "graph.json": graph.to_json(),
        "referrals.json": [each.to_json() for each in sentences],
        "txt": scene_caption(graph),
    }
