"""Sentences that speak of one object of a scene, as the field `referrals.json` of a sample has them.

    [{"text": "the red box left of the ball", "target": 3, "anchors": [5],
      "words": [[3, 8, 11], [5, 24, 28]], "needs_relation": true}, ...]

Objects are named by their ids in the sample's graph. `words` says which characters name which object, [object, start,
stop], the stop not included; a sentence may have none. Templates here write sentences with their words from a graph.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import dist
from typing import Any, NamedTuple

from collimate.data.decoding import Undecodable, check_text, decode_json
from collimate.data.scene_graphs import APART, GraphObject, GraphRelation, SceneGraph

REFERRALS = "referrals.json"


class NamedWord(NamedTuple):
    """Characters `start` to `stop` of a text name an object."""

    object: int
    start: int
    stop: int


@dataclass(frozen=True)
class Referral:
    """A sentence and what it is about.

    Attributes:
        text: the sentence.
        target: the id of the object that it refers to.
        anchors: ids of the objects that it mentions beside.
        words: which words name which object.
        needs_relation: whether its words for the target fit another object too; None where nobody said.
        more: what else a data set says of it, as plain data.
    """

    text: str
    target: int
    anchors: tuple[int, ...] = ()
    words: tuple[NamedWord, ...] = ()
    needs_relation: bool | None = None
    more: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain data, as `referrals_of` takes it."""
        found: dict[str, Any] = {
            "text": self.text,
            "target": self.target,
            "anchors": list(self.anchors),
            "words": [list(word) for word in self.words],
        }
        if self.needs_relation is not None:
            found["needs_relation"] = self.needs_relation
        return found | dict(self.more)


def referrals_of(value: Any) -> list[Referral]:
    """The sentences of a decoded field; none for None.

    Raises:
        Undecodable: they are not of this form, or a word lies outside of its text; says which.
    """
    if isinstance(value, str):
        value = decode_json(value.encode())
    if value is None:
        return []
    if isinstance(value, Mapping) or not isinstance(value, Sequence):
        raise Undecodable("referrals are no list", f"expected a list of objects, got {str(value)[:40]!r}")
    return [_referral(f"referral {number}", each) for number, each in enumerate(value)]


# Templates ------------------------------------------------------------------------------------------------------


def statement(graph: SceneGraph, relation: GraphRelation) -> Referral:
    """`the <subject> is <predicate> the <object>`, about the subject."""
    subject, anchor = graph.object(relation.subject), graph.object(relation.object)
    parts = ["the ", (subject, subject.name), f" is {relation.predicate} the ", (anchor, anchor.name)]
    return _written(parts, subject.id, (anchor.id,), len(_named(graph, subject.name)) > 1)


def attribute_referrals(graph: SceneGraph) -> list[Referral]:
    """`the red box`: for each object whose attributes and label no other has, the name that tells it."""
    names = Counter(each.name for each in graph.objects)
    return [
        _written(["the ", (each, each.name)], each.id, (), False) for each in graph.objects if names[each.name] == 1
    ]


def relation_referrals(graph: SceneGraph, full_names: bool = False) -> list[Referral]:
    """`the box left of the red ball`: every relation that tells its subject among several that are called the same.

    The anchor is called by its label where that is the only one, else by its whole name if that is; other anchors are
    left out.

    Args:
        full_names: call the target by attributes and label, where several objects share even these.
    """
    labels, names = Counter(each.label for each in graph.objects), Counter(each.name for each in graph.objects)
    objects = {each.id: each for each in graph.objects}

    def called(each: GraphObject) -> str:
        return each.name if full_names else each.label

    subjects = Counter((called(objects[each.subject]), each.predicate, each.object) for each in set(graph.relations))
    several = Counter(called(each) for each in graph.objects)
    found = []
    for relation in dict.fromkeys(graph.relations):
        target, anchor = objects[relation.subject], objects[relation.object]
        told = anchor.label if labels[anchor.label] == 1 else anchor.name if names[anchor.name] == 1 else None
        alone = subjects[called(target), relation.predicate, anchor.id] == 1
        if told is None or not alone or several[called(target)] == 1 or target.label == anchor.label:
            continue
        parts = ["the ", (target, called(target)), f" {relation.predicate} the ", (anchor, told)]
        found.append(_written(parts, target.id, (anchor.id,), True))
    return found


def proximity_referrals(graph: SceneGraph) -> list[Referral]:
    """`the box closest to the red ball`, `the box farthest from it`: of several objects of a label, by their centres.

    The anchor is of another label, and called as in `relation_referrals`. The next in order is `APART` from the target.
    These need their anchor, where the only object that is left of something is also the leftmost of its kind. Most
    sentences of Sr3D (Achlioptas et al. 2020) are of this form.
    """
    labels, names = Counter(each.label for each in graph.objects), Counter(each.name for each in graph.objects)
    found = []
    for anchor in graph.objects:
        told = anchor.label if labels[anchor.label] == 1 else anchor.name if names[anchor.name] == 1 else None
        for label in dict.fromkeys(each.label for each in graph.objects if each.label != anchor.label):
            if told is None or labels[label] == 1:
                continue
            several = [each for each in graph.objects if each.label == label]
            several.sort(key=lambda each: dist(each.center, anchor.center))
            reach = [dist(each.center, anchor.center) for each in several]
            for place, gap, words in (
                (0, reach[1] - reach[0], "closest to"),
                (-1, reach[-1] - reach[-2], "farthest from"),
            ):
                if gap > APART:
                    target = several[place]
                    parts = ["the ", (target, label), f" {words} the ", (anchor, told)]
                    found.append(_written(parts, target.id, (anchor.id,), True))
    return found


def scene_caption(graph: SceneGraph, place: str = "room") -> str:
    """What is there, in the order of the graph: `a room with two red chairs and a table`."""
    counts = Counter(each.name for each in graph.objects)
    told = [_counted(name, count) for name, count in counts.items()]
    if not told:
        return f"an empty {place}"
    listed = " and ".join([", ".join(told[:-1]), told[-1]] if len(told) > 1 else told)
    return f"a {place} with {listed}"


# One sentence -----------------------------------------------------------------------------------------------------

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


def _written(
    parts: Sequence[str | tuple[GraphObject, str]], target: int, anchors: tuple[int, ...], needs_relation: bool
) -> Referral:
    """A text put together, with the place of the label at the end of each name."""
    text, words = "", []
    for part in parts:
        text += part if isinstance(part, str) else part[1]
        if not isinstance(part, str):
            words.append(NamedWord(part[0].id, len(text) - len(part[0].label), len(text)))
    return Referral(text, target, anchors, tuple(words), needs_relation)


def _named(graph: SceneGraph, name: str) -> list[GraphObject]:
    return [each for each in graph.objects if each.name == name]


def _counted(name: str, count: int) -> str:
    if count == 1:
        return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
    plural = name + ("es" if name.endswith(("s", "sh", "ch", "x")) else "s")
    return f"{NUMBERS[count] if count < len(NUMBERS) else count} {plural}"


def _referral(which: str, each: Any) -> Referral:
    if not isinstance(each, Mapping) or not isinstance(each.get("text"), str) or "target" not in each:
        raise Undecodable("not a referral", f"{which}: expected a text and the id of its target; got {str(each)[:80]}")
    text = check_text(each["text"])
    try:
        target, anchors = int(each["target"]), tuple(int(anchor) for anchor in each.get("anchors") or ())
        words = tuple(NamedWord(*map(int, word)) for word in each.get("words") or ())
    except (OverflowError, TypeError, ValueError):
        raise Undecodable(
            "not a referral", f"{which}: target, anchors and words hold whole numbers; got {str(each)[:80]}"
        ) from None
    if outside := [word for word in words if not 0 <= word.start < word.stop <= len(text)]:
        raise Undecodable("word outside of its text", f"{which}: {list(outside[0])} in {len(text)} characters")
    needs = each.get("needs_relation")
    known = ("text", "target", "anchors", "words", "needs_relation")
    more = {name: value for name, value in each.items() if name not in known}
    return Referral(text, target, anchors, words, None if needs is None else bool(needs), more)
