"""Configurations name only trusted classes, say all arguments, and build the same object again."""

import copy
import pickle
from pathlib import Path

import pytest

from collimate.configurable import Configurable, build, class_path
from collimate.processing import ClipTokenizer, ImageProcessor

HERE = [__name__.split(".")[0]]


class Part(Configurable):
    def __init__(self, size: int, path: str | Path = "x") -> None:
        self.size = size


class Whole(Configurable):
    def __init__(self, part: Part, parts: list[Part] | None = None, scale: float = 2.0, **more: int) -> None:
        self.part, self.parts, self.scale, self.more = part, parts, scale, more


def test_round_trip_with_defaults_nesting_and_keywords():
    whole = Whole(Part(3, path=Path("a/b")), parts=[Part(4)], depth=5)
    config = whole.config()
    assert config["init_args"]["scale"] == 2.0
    assert config["init_args"]["depth"] == 5
    assert config["init_args"]["part"]["init_args"] == {"size": 3, "path": "a/b"}
    again = build(config, trust=HERE)
    assert again.config() == config
    assert again.parts[0].size == 4


def test_what_is_not_plain_is_refused_by_name():
    with pytest.raises(TypeError, match=r"Whole\.scale"):
        Whole(Part(1), scale=object()).config()


@pytest.mark.parametrize("path", ["os.system", "subprocess.Popen", "builtins.eval", "torch.load"])
def test_only_trusted_packages_are_named(path: str):
    with pytest.raises(ValueError, match="outside the trusted packages"):
        build({"class_path": path, "init_args": {"command": "true"}})


@pytest.mark.parametrize("path", ["collimate.cli.main", "collimate.configurable.build", "collimate.doctor.os.system"])
def test_only_configurable_classes_are_built(path: str):
    with pytest.raises((ValueError, ImportError)):
        build({"class_path": path})


def test_a_missing_class_is_named():
    with pytest.raises(ImportError, match=r"collimate\.encoders\.Nonesuch"):
        build({"class_path": "collimate.encoders.Nonesuch"})


def test_paths_are_the_public_ones():
    assert class_path(ImageProcessor) == "collimate.processing.ImageProcessor"
    config = ClipTokenizer(context_length=16).config()
    assert config["class_path"] == "collimate.processing.ClipTokenizer"
    assert build(config)("a dog").shape == (16,)


def test_survives_copy_and_pickle():
    part = Part(3)
    assert copy.deepcopy(part).config() == part.config()
    assert pickle.loads(pickle.dumps(part)).config() == part.config()


def test_a_class_without_a_constructor_has_no_arguments():
    class Bare(Configurable):
        pass

    assert Bare().config()["init_args"] == {}
