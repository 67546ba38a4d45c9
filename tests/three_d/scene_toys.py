"""Small scene-graph models and rooms for tests."""

import torch

from collimate.data.preparation import Preparation, collate
from collimate_3d.graphs import TripletGraph
from collimate_3d.language import GRUTextEncoder, WordTokenizer, count_words
from collimate_3d.object_encoder import ObjectPointNet
from collimate_3d.scene_graph_vlp import SceneGraphVLP
from collimate_3d.scenes import SceneProcessor
from collimate_world import ROOM_CLASSES, RoomSource


def rooms(length=40, **options):
    return RoomSource(**{"length": length, "objects": "4-6", "points": 12, "sentences": 4, **options})


def vocabulary(source):
    samples = [source.read(index) for index in range(min(len(source), 40))]
    texts = [one["text"] for sample in samples for one in (*sample["captions.json"], *sample["referrals.json"])]
    return count_words(texts)


def scene_graph_vlp(graph=None, seed=0, text_encoder=None, **options):
    torch.manual_seed(seed)
    words = vocabulary(rooms())
    return SceneGraphVLP(
        object_encoder=ObjectPointNet(16, 6, (8, 16)),
        text_encoder=text_encoder or GRUTextEncoder(len(words) + 4, 16, 32),
        graph=graph or TripletGraph(24, 16, 24, k=3),
        scene_processor=SceneProcessor(ROOM_CLASSES, 8, 12),
        tokenizer=WordTokenizer(words, 64),
        **{"embed_dim": 16, "sentences": 4, "sentence_length": 14, "dropout": 0.0, **options},
    )


def batch_of(method, source, places):
    prepare = Preparation(method.processors, captions=method.captions, optional=method.optional)
    return collate([prepare(source.read(place)) for place in places])
