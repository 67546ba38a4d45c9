"""Procedural scenes seen through every sensor: the embedded, always synthetic, data set."""

from collimate_world.captions import KINDS, Caption, caption, phrase, sentence
from collimate_world.chest import chest_film
from collimate_world.clip import CLIP_RATE, Clip
from collimate_world.clip_source import MOTION_CLASSES, MOTION_TEMPLATES, ClipSource
from collimate_world.heartbeat import heartbeats
from collimate_world.lidar import SURFACES, Pattern
from collimate_world.motion import MOTIONS, OPPOSITE, motion, moving
from collimate_world.motion_captions import MOTION_KINDS, motion_caption
from collimate_world.negatives import NEGATIVE_KINDS, Negative, negatives
from collimate_world.object_source import (
    HELD_OUT_OBJECTS,
    OBJECT_CLASSES,
    OBJECT_KINDS,
    OBJECT_TEMPLATES,
    ObjectSource,
    object_captions,
)
from collimate_world.patient import ECG_FINDINGS, FINDINGS, XRAY_FINDINGS, Visit, sample_visit
from collimate_world.patient_source import PatientSource
from collimate_world.picture import Picture
from collimate_world.relations import CONVERSE, Relation, relations
from collimate_world.reports import report
from collimate_world.room import FURNITURE, HELD_OUT_FURNITURE, PAINTS, Furnishing, Room, sample_object, sample_room
from collimate_world.room_source import ROOM_CLASSES, ROOM_KINDS, RoomSource
from collimate_world.scene import (
    COLOURS,
    HELD_OUT,
    HELD_OUT_SIZES,
    SHAPES,
    SIZES,
    TEXTURES,
    Light,
    Scene,
    Thing,
    sample_scene,
)
from collimate_world.sound import PITCHES, RHYTHMS, TIMBRES, Sound
from collimate_world.sound_captions import SOUND_KINDS, sound_caption, sound_name, sound_phrase
from collimate_world.sound_source import HELD_OUT_SOUNDS, SOUND_CLASSES, SOUND_TEMPLATES, SoundSource
from collimate_world.source import CLASS_NAMES, HELD_OUT_CLASSES, TEMPLATES, WorldSource
from collimate_world.street import MOUNTED, ROAD_USERS, RoadUser, Street, sample_street
from collimate_world.sweep_source import SWEEP_CLASSES, SWEEP_PERIOD, SweepSource

__all__ = [
    "CLASS_NAMES",
    "CLIP_RATE",
    "COLOURS",
    "CONVERSE",
    "ECG_FINDINGS",
    "FINDINGS",
    "FURNITURE",
    "HELD_OUT",
    "HELD_OUT_CLASSES",
    "HELD_OUT_FURNITURE",
    "HELD_OUT_OBJECTS",
    "HELD_OUT_SIZES",
    "HELD_OUT_SOUNDS",
    "KINDS",
    "MOTIONS",
    "MOTION_CLASSES",
    "MOTION_KINDS",
    "MOTION_TEMPLATES",
    "MOUNTED",
    "NEGATIVE_KINDS",
    "OBJECT_CLASSES",
    "OBJECT_KINDS",
    "OBJECT_TEMPLATES",
    "OPPOSITE",
    "PAINTS",
    "PITCHES",
    "RHYTHMS",
    "ROAD_USERS",
    "ROOM_CLASSES",
    "ROOM_KINDS",
    "SHAPES",
    "SIZES",
    "SOUND_CLASSES",
    "SOUND_KINDS",
    "SOUND_TEMPLATES",
    "SURFACES",
    "SWEEP_CLASSES",
    "SWEEP_PERIOD",
    "TEMPLATES",
    "TEXTURES",
    "TIMBRES",
    "XRAY_FINDINGS",
    "Caption",
    "Clip",
    "ClipSource",
    "Furnishing",
    "Light",
    "Negative",
    "ObjectSource",
    "PatientSource",
    "Pattern",
    "Picture",
    "Relation",
    "RoadUser",
    "Room",
    "RoomSource",
    "Scene",
    "Sound",
    "SoundSource",
    "Street",
    "SweepSource",
    "Thing",
    "Visit",
    "WorldSource",
    "caption",
    "chest_film",
    "heartbeats",
    "motion",
    "motion_caption",
    "moving",
    "negatives",
    "object_captions",
    "phrase",
    "relations",
    "report",
    "sample_object",
    "sample_room",
    "sample_scene",
    "sample_street",
    "sample_visit",
    "sentence",
    "sound_caption",
    "sound_name",
    "sound_phrase",
]
