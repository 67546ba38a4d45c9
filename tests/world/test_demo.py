"""The demo's recipe names data that exist, and tests on what training never shows."""

from pathlib import Path

import yaml

from collimate.data import open_source
from collimate_world import CLASS_NAMES, HELD_OUT_CLASSES, TEMPLATES

RECIPE = yaml.safe_load((Path(__file__).parents[2] / "configs/vision_language/clip_demo.yaml").read_text())


def test_training_is_on_seen_combinations():
    for spec in RECIPE["data"]["train"]:
        source = open_source(spec)
        held_out = {CLASS_NAMES[number] for number in HELD_OUT_CLASSES}
        assert source.split == "train"
        assert not held_out & {region["name"] for i in range(50) for region in source.read(i)["regions.json"]}


def test_zero_shot_is_on_all_combinations_and_on_those_never_seen():
    found = [
        {open_source(evaluation["data"]).read(i)["cls"] for i in range(600)}
        for evaluation in RECIPE["evaluation"]["zero_shot"].values()
    ]
    assert found == [set(range(len(CLASS_NAMES))), set(HELD_OUT_CLASSES)]
    assert all(evaluation["templates"] == TEMPLATES for evaluation in RECIPE["evaluation"]["zero_shot"].values())


def test_captions_of_retrieval_tell_scenes_apart():
    source = open_source(RECIPE["evaluation"]["retrieval"]["scenes of three objects"]["data"])
    texts = {frozenset(region["name"] for region in source.read(i)["regions.json"]) for i in range(len(source))}
    assert len(texts) >= 0.98 * len(source)
