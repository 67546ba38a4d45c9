"""`collimate three-d` as a user types it: a vocabulary, a tiny training with its report, and the verbs on its model."""

import json

import pytest

from collimate.cli import main

from .recipes import write_recipe

ROOMS = "world-rooms:{split}?length={length}&objects=4-6&points=12&sentences=4"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("three_d")


def recipe(folder):
    return {
        "output": str(folder / "run"),
        "model": {
            "class_path": "collimate_3d.SceneGraphVLP",
            "init_args": {
                "object_encoder": {"class_path": "collimate_3d.ObjectPointNet", "init_args": {"width": 16}},
                "text_encoder": {
                    "class_path": "collimate_3d.GRUTextEncoder",
                    "init_args": {"vocab_size": 80, "word_width": 16, "width": 16},
                },
                "graph": {
                    "class_path": "collimate_3d.TripletGraph",
                    "init_args": {"width": 16, "edge_width": 8, "hidden": 16},
                },
                "scene_processor": {
                    "class_path": "collimate_3d.SceneProcessor",
                    "init_args": {"classes": ["cube", "ball"], "max_objects": 8, "points": 12},
                },
                "tokenizer": {
                    "class_path": "collimate_3d.WordTokenizer",
                    "init_args": {"words": str(folder / "words.txt"), "context_length": 40},
                },
                "embed_dim": 16,
                "sentences": 3,
                "sentence_length": 12,
            },
        },
        "data": {
            "train": ROOMS.format(split="train", length=40),
            "batch_size": 4,
            "augmentations": {
                "scene": {"class_path": "collimate_3d.SceneAugmentation"},
                "referrals": {"class_path": "collimate_3d.DrawnReferrals"},
            },
        },
        "trainer": {"max_steps": 3, "log_every_n_steps": 1, "accelerator": "cpu", "enable_progress_bar": False},
        "evaluation": {
            "further": {
                "rooms": {
                    "function": "collimate_3d.evaluate_grounding",
                    "data": ROOMS.format(split="test", length=4),
                    "resamples": 5,
                }
            }
        },
    }


def test_a_vocabulary_a_model_and_what_it_finds(folder):
    main(
        [
            "three-d",
            "vocabulary",
            f"--data={ROOMS.format(split='train', length=30)}",
            f"--output={folder / 'words.txt'}",
        ]
    )
    assert "left" in (folder / "words.txt").read_text().splitlines()
    path = write_recipe(folder / "recipe.yaml", recipe(folder))
    main(["three-d", "train", f"--config={path}"])
    found = json.loads((folder / "run" / "report.json").read_text())
    assert found["Grounding: rooms"]["protocol"]["boxes"] == "ground truth"
    assert "data:image/jpeg" in (folder / "run" / "report.html").read_text()

    model, test = f"--checkpoint={folder / 'run' / 'model'}", ROOMS.format(split="test", length=4)
    main(["three-d", "ground", model, f"--data={test}", f"--output={folder / 'ground'}", "--resamples=5"])
    again = json.loads((folder / "ground" / "report.json").read_text())
    assert again["Grounding"]["metrics"] == found["Grounding: rooms"]["metrics"]
    main(["three-d", "classify-objects", model, f"--data={test}", f"--output={folder / 'objects'}", "--resamples=5"])
    assert "acc1" in (folder / "objects" / "report.json").read_text()
    main(["three-d", "retrieval", model, f"--data={test}", f"--output={folder / 'retrieval'}", "--resamples=5"])


def test_the_words_of_a_file_stay_with_the_model(folder):
    config = (folder / "run" / "model" / "config.json").read_text()
    assert '"left"' in config
    assert "words.txt" not in config
