"""The demo of LiDAR and the verb `detect` as a user types them, and the sources that fine-tuning reads."""

import json
from pathlib import Path

import pytest
import yaml

from collimate.app import installed_apps
from collimate.cli import main
from collimate.data import open_source
from collimate.data.decoding import value_of
from collimate_3d.lidar.calibration import CALIBRATION, Calibration

KITTI = Path(__file__).parents[3] / "shared" / "data" / "lidar_kitti_object"


def small(name: str, folder: Path) -> Path:
    """A recipe of the demo with coarse voxels and two steps."""
    recipe = yaml.safe_load(installed_apps()["three-d"].recipe(name).read_text())

    def shrunk(section):
        if isinstance(section, dict):
            return {key: [0.5, 0.5, 0.16] if key == "cell" else shrunk(value) for key, value in section.items()}
        return section

    recipe["model"] = shrunk(recipe["model"])
    recipe["data"] |= {"batch_size": 2, "num_workers": 0}
    recipe["trainer"] |= {"accelerator": "cpu", "enable_progress_bar": False, "max_steps": 2, "log_every_n_steps": 1}
    recipe.pop("evaluation", None)
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def test_the_demo_and_detection(tmp_path):
    test = "world-sweeps:test?length=3"
    run = tmp_path / "demo"
    recipes = [
        f"--{key}={small(name, tmp_path)}"
        for key, name in (("pretraining", "essl3d_demo"), ("detection", "lidar_detect_demo"))
    ]
    train = "label-share:world-sweeps:train?length=40&share=0.05"
    main(["three-d", "lidar-demo", f"--output={run}", f"--test={test}", f"--train={train}", *recipes])
    compared = json.loads((run / "report.json").read_text())["comparison"]
    assert set(compared) == {"scratch", "pretrained"}
    assert {"bev mean all", "3d Cyclist all"} <= compared["scratch"]["metrics"].keys()
    assert "data:image" in (run / "report.html").read_text()
    found = tmp_path / "found"
    checkpoint = f"--checkpoint={run / 'pretrained' / 'model'}"
    main(["three-d", "detect", checkpoint, f"--data={test}", f"--output={found}", "--device=cpu"])
    assert len((found / "boxes.jsonl").read_text().splitlines()) == 3
    with pytest.raises(SystemExit):
        main(["three-d", "detect", f"--checkpoint={run / 'pretraining' / 'model'}", f"--data={test}"])


def test_shares_of_labels_contain_one_another():
    spec = "label-share:world-sweeps:train?length=40&share={}&share_seed={}"
    few, more, other = (open_source(spec.format(*each)) for each in ((0.05, 3), (0.2, 3), (0.2, 4)))
    assert (len(few), len(more), len(other)) == (2, 8, 8)
    keys = [{source.read(index)["__key__"] for index in range(len(source))} for source in (few, more, other)]
    assert keys[0] < keys[1] != keys[2]
    assert few.peek(0, ["objects.json"]).keys() >= {"objects.json"}
    with pytest.raises(IndexError):
        few.read(2)
    with pytest.raises(ValueError, match="fraction"):
        open_source(spec.format(0, 0))


def test_the_front_of_kitti_is_what_the_camera_sees():
    if not KITTI.is_dir():
        pytest.skip(f"There is no {KITTI}.")
    whole, front = (open_source(f"kitti:{KITTI}?front={each}") for each in ("false", "true"))
    for index in range(2):
        every, seen = (value_of(source.read(index), ("sweep.npz",)) for source in (whole, front))
        assert len(seen) < len(every)
        calibration = Calibration.from_json(front.read(index)[CALIBRATION])
        assert calibration.sees(seen.xyz, (375, 1242)).mean() > 0.99
