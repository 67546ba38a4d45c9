"""ScanNet with sentences on its objects: `scenes-scannet:/data/scannet/scans?referrals=ScanRefer_filtered_val.json`.

Dai et al. 2017, ScanNet, arXiv 1702.04405. As its authors lay it out, in `<root>/<scene>/`:

- `<scene>_vh_clean_2.ply`, the vertices and their colours;
- `<scene>_vh_clean_2.0.010000.segs.json`, the segment of each vertex (`segIndices`);
- `<scene>.aggregation.json`, the objects (`segGroups`: objectId from 0, label, segments). A file that ends on
  `_vh_clean.aggregation.json` speaks of another segmentation, and is not read. A segment of several objects is the
  last one's, as in the official scripts;
- `<scene>.txt`, whose `axisAlignment` turns the scan so that walls lie along x and y.

Sentences come from ScanRefer (Chen et al. 2020), or from Nr3D and Sr3D (Achlioptas et al. 2020), whose object ids are
ScanNet's, or are none; the words that name the target are looked for in them.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int64

from collimate.data import CorruptSample, Sample, Source
from collimate.data.referrals import Referral
from collimate_3d.scenes.reading import graph_from_points, read_json, read_vertices
from collimate_3d.scenes.referral_files import named_words, read_referrals
from collimate_3d.scenes.three_dssg import scene_sample

SEGMENTS = "_vh_clean_2.0.010000.segs.json"
UNKNOWN = -1


class ScanNetSource(Source):
    """Scenes as samples: `scene.npz`, `graph.json` with spatial relations, `referrals.json` and `txt`.

    Args:
        root: the folder of the scenes.
        referrals: a file of sentences (`collimate_3d.scenes.referral_files.read_referrals`), or None.
        scenes: a .txt file with a scene a line, such as `scannetv2_val.txt`; those of the sentences, else all of the
            folder if None.
        labels: ScanNet's table of labels, `scannetv2-labels.combined.tsv`: objects have the class of its column
            `nyu40class` then (`chair` for `office chair`); graphs and sentences keep what they are called.
        relations: whether graphs have the relations that follow from boxes.

    Raises:
        FileNotFoundError: a file is missing, or every scene is.
        ValueError: a file is not of its form.
    """

    def __init__(
        self,
        root: str,
        referrals: str | None = None,
        scenes: str | None = None,
        labels: str | None = None,
        relations: bool = True,
    ) -> None:
        self.root, self.relations = Path(root), relations
        self.name = f"scenes-scannet:{root}"
        self.classes = read_classes(Path(labels)) if labels else {}
        told: dict[str, list[Referral]] = defaultdict(list)
        for scene, each in read_referrals(referrals) if referrals else []:
            told[scene].append(each)
        self.referrals: Mapping[str, list[Referral]] = told
        if scenes is not None:
            wanted = Path(scenes).read_text(encoding="utf-8").split()
        else:
            wanted = sorted(told) if referrals else sorted(path.name for path in self.root.glob("scene*"))
        self.scenes = [scene for scene in wanted if self._mesh(scene).is_file()]
        self.missing = len(wanted) - len(self.scenes)
        if not self.scenes:
            raise FileNotFoundError(
                f"{root} holds none of {len(wanted)} scenes: expected <scene>/<scene>_vh_clean_2.ply."
            )

    def __len__(self) -> int:
        return len(self.scenes)

    def read(self, index: int) -> Sample:
        scene = self.scenes[index]
        folder = self.root / scene
        try:
            xyz, rgb, _ = read_vertices(self._mesh(scene))
            segments = np.asarray(read_json(folder / f"{scene}{SEGMENTS}")["segIndices"])
            groups = read_json(folder / f"{scene}.aggregation.json")["segGroups"]
            instance = instances_of(segments, groups)
            if len(instance) != len(xyz):
                raise ValueError(f"{len(instance)} segments for {len(xyz)} vertices: they are of another mesh")
            xyz = aligned(xyz, folder / f"{scene}.txt")
        except (ValueError, FileNotFoundError, KeyError) as error:
            raise CorruptSample(f"{self.name}: {scene}", "scene cannot be read", str(error)) from error
        labels = {int(each["objectId"]): str(each["label"]) for each in groups}
        graph = graph_from_points(xyz, instance, labels)
        told = [named_words(each, labels) for each in self.referrals.get(scene, [])]
        sample = scene_sample(scene, self.name, graph, (xyz, rgb, instance), told)
        if self.classes:
            names = [self.classes.get(each.label, each.label) for each in graph.objects]
            sample["scene.npz"]["labels"] = np.array(names, np.str_)
        if self.relations:  # of which the points' table has none: a graph over a scene finds its own neighbours
            sample["graph.json"] = graph.with_spatial_relations().to_json()
        return sample

    def _mesh(self, scene: str) -> Path:
        return self.root / scene / f"{scene}_vh_clean_2.ply"


def instances_of(segments: Int64[np.ndarray, " P"], groups: Sequence[Mapping]) -> Int64[np.ndarray, " P"]:
    """The object of each vertex, -1 where none has its segment.

    Args:
        segments: of each vertex.
        groups: the aggregation's, each with its `objectId` and `segments`.
    """
    owner = {segment: int(group["objectId"]) for group in groups for segment in group["segments"]}
    numbers, place = np.unique(segments, return_inverse=True)
    owners = np.array([owner.get(int(number), UNKNOWN) for number in numbers], np.int64)
    return owners[place] if len(numbers) else np.zeros(0, np.int64)


def read_classes(path: Path) -> dict[str, str]:
    """What objects are called -> their class, of ScanNet's table of labels.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it lacks a column.
    """
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file, delimiter="\t")
        if lacking := {"raw_category", "nyu40class"} - set(rows.fieldnames or ()):
            raise ValueError(f"{path} has no column {min(lacking)!r}; it has {', '.join(rows.fieldnames or ())}.")
        return {row["raw_category"]: row["nyu40class"] for row in rows}


def aligned(xyz: Float[np.ndarray, "P 3"], path: Path) -> Float[np.ndarray, "P 3"]:
    """Points turned by a scene's `axisAlignment`, sixteen numbers, row by row; as they are where the file has none.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: these are no sixteen numbers.
    """
    for line in path.read_text(encoding="utf-8").splitlines():
        name, _, values = line.partition("=")
        if name.strip() == "axisAlignment":
            numbers = np.array([float(value) for value in values.split()])
            if numbers.size != 16:
                raise ValueError(f"{path}: axisAlignment has {numbers.size} numbers, expected 16.")
            matrix = numbers.reshape(4, 4)
            return xyz @ matrix[:3, :3].T + matrix[:3, 3]
    return xyz
