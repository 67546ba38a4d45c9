"""Procedural scenes seen through every sensor: the embedded, always synthetic, data set."""

from collimate_world.captions import KINDS, Caption, caption, phrase, sentence
from collimate_world.negatives import NEGATIVE_KINDS, Negative, negatives
from collimate_world.picture import Picture
from collimate_world.relations import CONVERSE, Relation, relations
from collimate_world.scene import COLOURS, HELD_OUT, SHAPES, SIZES, TEXTURES, Light, Scene, Thing, sample_scene
from collimate_world.source import CLASS_NAMES, HELD_OUT_CLASSES, TEMPLATES, WorldSource

__all__ = [
    "CLASS_NAMES",
    "COLOURS",
    "CONVERSE",
    "HELD_OUT",
    "HELD_OUT_CLASSES",
    "KINDS",
    "NEGATIVE_KINDS",
    "SHAPES",
    "SIZES",
    "TEMPLATES",
    "TEXTURES",
    "Caption",
    "Light",
    "Negative",
    "Picture",
    "Relation",
    "Scene",
    "Thing",
    "WorldSource",
    "caption",
    "negatives",
    "phrase",
    "relations",
    "sample_scene",
    "sentence",
]
