"""`collimate data import-regions`: the annotated pictures of public data sets as a table with regions.

One reader a format, each from the files as their authors publish them:

- `coco`: an instances file (`instances_val2017.json`), also LVIS's. A box is captioned with the name of its class, with
  blanks for underscores. Crowds, which are no single object, are left out.
- `visual-genome`: `region_descriptions.json`.
- `refcoco`: a file of references (`refs(unc).p`; RefCOCO, RefCOCO+ and RefCOCOg alike), beside which lies
  `instances.json`. A region has all expressions for its object, of which training draws one.
- `flickr30k-entities`: the folder with `Annotations` and `Sentences`. A region is one box of an entity, with all
  phrases for it in the five captions. Corners are counted from 1 there, the far edges included.
"""

from __future__ import annotations

import json
import os
import pickle
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

from collimate.data.commands import console, progress_bar
from collimate.data.decoding import Undecodable
from collimate.data.regions import regions_of

Format = Literal["coco", "visual-genome", "refcoco", "flickr30k-entities"]


def import_regions(format: Format, annotations: str, images: str, output: str, captions: str | None = None) -> None:
    """Write a table of pictures with regions from the files of a public data set.

    The table is a source like any other (`collimate data inspect`, `collimate data shard`). Damaged regions, and
    pictures that are not there, are left out and counted.

    Args:
        format: coco (also LVIS), visual-genome, refcoco (also RefCOCO+ and RefCOCOg) or flickr30k-entities.
        annotations: the file of instances, region descriptions or references, or the folder of Flickr30k Entities.
        images: the folder of the pictures; they may lie in folders below it.
        output: the table, a .jsonl file. It names pictures relative to its own folder.
        captions: COCO's file of captions (`captions_val2017.json`), for coco and refcoco.

    Raises:
        FileNotFoundError: a file is missing, or none of the pictures is there.
        ValueError: a file is not of this format, or captions were given where none can be.
    """
    if captions and format not in ("coco", "refcoco"):
        raise ValueError(f"A file of captions goes with coco and refcoco only, not with {format}.")
    if not output.endswith(".jsonl"):
        raise ValueError(f"The table is a .jsonl file, not {output!r}.")
    source = Path(annotations)
    if not source.exists():
        raise FileNotFoundError(f"There is no {annotations!r}; expected {_EXPECTED[format]}.")
    texts = _captions(Path(captions)) if captions else {}
    paths = _pictures(Path(images))
    table, left_out = Path(output), Counter[str]()
    table.parent.mkdir(parents=True, exist_ok=True)
    partial = table.with_name(f".{table.name}.partial")
    pictures = regions = 0
    with open(partial, "w", encoding="utf-8") as file, progress_bar() as progress:
        for each in progress.track(list(_READERS[format](source, left_out)), description="Writing the table"):
            path = paths.get(each.file) or paths.get(Path(each.file).name)
            own = list(_sound(each, left_out))
            words = each.captions or texts.get(each.number, [])
            if path is None or not (own or words):
                left_out["picture not there" if path is None else "picture without regions"] += 1
                continue
            name = Path(os.path.relpath(path, table.parent)).as_posix()
            # Every row has every column: a table's columns are those of its first row.
            row = {"file": name, "split": each.split, "captions": words or None, "regions": own or None}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            pictures, regions = pictures + 1, regions + len(own)
    if not pictures:
        partial.unlink()
        raise FileNotFoundError(f"None of the pictures that {annotations} names is in {images}, or none has a region.")
    os.replace(partial, table)
    console.print(f"{regions} regions in {pictures} pictures: {output}")
    for reason, count in sorted(left_out.items()):
        console.print(f"Left out: {count} x {reason}.")


@dataclass
class Picture:
    """What a data set says of a picture.

    Attributes:
        file: its name, with or without folders.
        regions: as `regions.json` has them.
        number: its id in the data set, by which a file of captions knows it.
        size: width and height, where they are known.
        split: the part of the data set, or None.
        captions: of the whole picture.
    """

    file: str
    regions: list[dict[str, Any]] = field(default_factory=list)
    number: Any = None
    size: tuple[int, int] | None = None
    split: str | None = None
    captions: list[str] = field(default_factory=list)


# Formats --------------------------------------------------------------------------------------------------------


def _coco(path: Path, left_out: Counter[str]) -> Iterator[Picture]:
    content = _json(path, "coco", "images", "annotations", "categories")
    names = {each["id"]: str(each["name"]).replace("_", " ") for each in content["categories"]}
    pictures = _coco_pictures(content["images"])
    for each in content["annotations"]:
        if each.get("iscrowd"):
            left_out["crowd"] += 1
            continue
        if each["image_id"] not in pictures:
            left_out["box of no picture"] += 1
            continue
        pictures[each["image_id"]].regions.append({"bbox": each["bbox"], "category": names[each["category_id"]]})
    yield from pictures.values()


def _visual_genome(path: Path, left_out: Counter[str]) -> Iterator[Picture]:
    for each in _json(path, "visual-genome"):
        if not isinstance(each, dict) or "regions" not in each:
            raise ValueError(f"{path} is not of the format visual-genome; expected {_EXPECTED['visual-genome']}.")
        number = each.get("id", each.get("image_id"))
        regions = [
            {"bbox": [region[key] for key in ("x", "y", "width", "height")], "phrase": region["phrase"]}
            for region in each["regions"]
        ]
        yield Picture(f"{number}.jpg", regions, number)


def _refcoco(path: Path, left_out: Counter[str]) -> Iterator[Picture]:
    references = _plain_pickle(path) if path.suffix == ".p" else _json(path, "refcoco")
    instances = _json(path.with_name("instances.json"), "refcoco", "images", "annotations", "categories")
    boxes = {each["id"]: each["bbox"] for each in instances["annotations"]}
    names = {each["id"]: str(each["name"]) for each in instances["categories"]}
    known = _coco_pictures(instances["images"])
    parts: dict[tuple[Any, str], Picture] = {}
    for each in references:
        number, split = each["image_id"], each["split"]
        if number not in known or each["ann_id"] not in boxes:
            left_out["expression for no box"] += 1
            continue
        picture = parts.setdefault((number, split), Picture(known[number].file, [], number, known[number].size, split))
        phrases = list(dict.fromkeys(sentence["sent"] for sentence in each["sentences"]))
        picture.regions.append(
            {"bbox": boxes[each["ann_id"]], "category": names[each["category_id"]], "phrases": phrases}
        )
    yield from parts.values()


_ENTITY = re.compile(r"\[/EN#(\d+)(?:/\w+)+ ([^\]]*)\]")


def _flickr30k_entities(path: Path, left_out: Counter[str]) -> Iterator[Picture]:
    for boxes in sorted((path / "Annotations").glob("*.xml")):
        marked = (path / "Sentences" / f"{boxes.stem}.txt").read_text(encoding="utf-8").splitlines()
        phrases: dict[str, dict[str, None]] = defaultdict(dict)
        for entity, words in (match.groups() for line in marked for match in _ENTITY.finditer(line)):
            phrases[entity][words] = None
        root = ElementTree.parse(boxes).getroot()
        width, height = (int(root.findtext(f"size/{side}", "0")) for side in ("width", "height"))
        size = (width, height) if width and height else None
        regions = [
            {"box": [x0 - 1, y0 - 1, x1, y1], "phrases": list(phrases[entity])}
            for entity, (x0, y0, x1, y1) in _flickr_boxes(root)
            if entity in phrases
        ]
        captions = [_ENTITY.sub(r"\2", line) for line in marked if line.strip()]
        yield Picture(f"{boxes.stem}.jpg", regions, boxes.stem, size, captions=captions)


def _flickr_boxes(root: ElementTree.Element) -> Iterator[tuple[str, list[int]]]:
    """Each box with each entity that it shows."""
    for thing in root.iter("object"):
        box = thing.find("bndbox")
        if box is not None:
            corners = [int(box.findtext(side, "")) for side in ("xmin", "ymin", "xmax", "ymax")]
            yield from ((name.text or "", corners) for name in thing.iter("name"))


_READERS: Mapping[str, Callable[[Path, Counter[str]], Iterator[Picture]]] = {
    "coco": _coco,
    "visual-genome": _visual_genome,
    "refcoco": _refcoco,
    "flickr30k-entities": _flickr30k_entities,
}
_EXPECTED = {
    "coco": "a file of instances with images, annotations and categories",
    "visual-genome": "region_descriptions.json, a list of pictures with their regions",
    "refcoco": "a file of references, such as refs(unc).p, with instances.json beside it",
    "flickr30k-entities": "a folder with Annotations/*.xml and Sentences/*.txt",
}


# Files ----------------------------------------------------------------------------------------------------------


def _sound(picture: Picture, left_out: Counter[str]) -> Iterator[dict[str, Any]]:
    """The regions that training would take."""
    for each in picture.regions:
        try:
            regions_of([each], picture.size)
        except Undecodable as error:
            left_out[error.reason] += 1
        else:
            yield each


def _coco_pictures(images: list[dict[str, Any]]) -> dict[Any, Picture]:
    """By their ids; LVIS names them by their address only."""
    return {
        each["id"]: Picture(
            each.get("file_name") or each["coco_url"].rsplit("/", 1)[-1],
            number=each["id"],
            size=(each["width"], each["height"]),
        )
        for each in images
    }


def _captions(path: Path) -> dict[Any, list[str]]:
    found: dict[Any, list[str]] = defaultdict(list)
    for each in _json(path, "coco", "annotations")["annotations"]:
        if "caption" not in each:
            raise ValueError(f"{path} has no captions; expected a file such as captions_val2017.json.")
        found[each["image_id"]].append(each["caption"].strip())
    return found


def _pictures(folder: Path) -> dict[str, Path]:
    """The files of a folder and those below it, by name, and by path in it."""
    found = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.name: path for path in found} | {path.relative_to(folder).as_posix(): path for path in found}


def _json(path: Path, format: str, *keys: str) -> Any:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}); expected {_EXPECTED[format]}.") from None
    if missing := [key for key in keys if key not in content]:
        raise ValueError(f"{path} has no {missing[0]!r}; expected {_EXPECTED[format]}.")
    return content


class _PlainUnpickler(pickle.Unpickler):
    """Reads lists, dicts, texts and numbers, and runs nothing."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        raise pickle.UnpicklingError(f"it holds {module_name}.{global_name}, and only plain values are read")


def _plain_pickle(path: Path) -> Any:
    try:
        with open(path, "rb") as file:
            return _PlainUnpickler(file, encoding="latin1").load()
    except (pickle.UnpicklingError, EOFError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); expected {_EXPECTED['refcoco']}.") from None
