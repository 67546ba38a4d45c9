"""Rooms of the world as a source of samples, made when they are read."""

from __future__ import annotations

from collections import Counter

from collimate.data import Sample
from collimate.data.referrals import (
    Referral,
    attribute_referrals,
    proximity_referrals,
    relation_referrals,
    scene_caption,
    statement,
)
from collimate.data.scene_graphs import SceneGraph, scene_arrays
from collimate_world.captions import Caption
from collimate_world.generated import Generated
from collimate_world.room import FURNITURE, Room, sample_room
from collimate_world.source import number_range

ROOM_KINDS = ("short", "long")
"""The kinds of captions of rooms: what is there; and where some of it is, too."""

ROOM_CLASSES = list(FURNITURE)
"""The classes of objects in rooms."""

TOLD = 3  # ours: relations in a long caption
_SENTENCES, _CAPTIONS = 2, 3  # of a room's random numbers


class RoomSource(Generated):
    """Rooms of coloured solids with sentences on their objects: `world-rooms:train?objects=6-12` on the command line.

    A sample has `scene.npz` (points with colours and objects, and the table of the objects; see
    `collimate.data.scene_graphs.scene_arrays`), `graph.json` (the objects and every spatial relation),
    `referrals.json` (sentences on single objects, with the words that name them), `txt`, `captions.json` (one of each
    kind) and `json` (that it is synthetic).

    Half of the sentences call the object by a name that no other has (`the red cube`), half need a relation to tell it
    from others of its class, or even of its name (`the cube left of the ball`); `needs_relation` says which. Half of
    these are of the form `the cube closest to the ball`: where others hold, an object's place in the room tells much
    already. A room may lack one of the two kinds, and has more of the other then, or fewer in all.

    Args:
        split: train, val or test.
        objects: how many objects a room has: a number, or a range as in `6-12`.
        length: number of rooms.
        points: on each object.
        sentences: of each room at most.
        seed: another seed, another world of the same kind.
        text: the kind of caption that is the sample's `txt`.

    Raises:
        ValueError: an argument is not one of these; says which are.
    """

    def __init__(
        self,
        split: str = "train",
        objects: int | str = "6-12",
        length: int = 10_000,
        points: int = 64,
        sentences: int = 8,
        seed: int = 0,
        text: str = "long",
    ) -> None:
        if text not in ROOM_KINDS:
            raise ValueError(f"The text of a sample is one of {', '.join(ROOM_KINDS)}; not {text!r}.")
        if points < 1 or sentences < 1:
            raise ValueError(f"Objects have points, and rooms sentences; not {points} and {sentences}.")
        super().__init__(f"world-rooms:{split}?objects={objects}", split, length, seed)
        self.objects = number_range(objects, int, "The number of objects")
        self.points, self.sentences, self.text = points, sentences, text
        self.room(0)  # refuses what cannot be, before training starts

    def room(self, index: int) -> Room:
        """The room of a sample."""
        return sample_room(self.split, index, self.seed, self.objects)

    def made(self, index: int) -> Sample:
        room = self.room(index)
        graph = room.graph()
        captions = room_captions(room, graph)
        about = {"synthetic": True, "split": self.split, "seed": self.seed, "index": index}
        return {
            "__key__": f"room-{self.split}-{'-'.join(map(str, self.objects))}-{self.seed}-{index:08d}",
            "__source__": self.name,
            "scene.npz": scene_arrays(graph, *room.points(self.points)),
            "graph.json": graph.to_json(),
            "referrals.json": [each.to_json() for each in room_referrals(room, graph, self.sentences)],
            "txt": next(one.text for one in captions if one.kind == self.text),
            "captions.json": [dict(vars(one)) for one in captions],
            "json": about,
        }


def room_referrals(room: Room, graph: SceneGraph, count: int) -> list[Referral]:
    """So many sentences at most, one that needs a relation and one that does not in turn."""
    rng = room.generator(_SENTENCES)
    plain, closest, related = (
        [found[i] for i in rng.permutation(len(found))]
        for found in (attribute_referrals(graph), proximity_referrals(graph), _related(graph))
    )
    pools = [plain, [*closest[: count // 4], *related, *closest[count // 4 :]]]
    if not pools[0] or not pools[1]:
        return (pools[0] + pools[1])[:count]
    half = min(max(count // 2, count - len(pools[1])), len(pools[0]))
    return pools[0][:half] + pools[1][: count - half]


def _related(graph: SceneGraph) -> list[Referral]:
    """By relations, of objects that are called by their label, and of those that share their whole name."""
    return relation_referrals(graph) + relation_referrals(graph, full_names=True)


def room_captions(room: Room, graph: SceneGraph) -> list[Caption]:
    """One of each kind."""
    rng = room.generator(_CAPTIONS)
    short = scene_caption(graph)
    names = Counter(each.name for each in graph.objects)
    clear = [
        each
        for each in graph.relations
        if names[graph.object(each.subject).name] == names[graph.object(each.object).name] == 1
    ]
    told = [statement(graph, clear[i]).text for i in rng.permutation(len(clear))[:TOLD]]
    return [Caption("short", short), Caption("long", f"{short}, where {' and '.join(told)}" if told else short)]
