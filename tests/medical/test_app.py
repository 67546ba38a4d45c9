"""The medical app as a user types it, small: train, find, retrieve, probe, embed, export; what its demo promises."""

import json
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from safetensors import safe_open

from collimate.app import installed_apps
from collimate.checkpoints import load
from collimate.checkpoints.export import export
from collimate.cli import main
from collimate.data import open_source
from collimate.encoders import LoRA, OpenClipTextEncoder
from collimate.processing import ClipTokenizer
from collimate_medical import ECGProcessor, ECGTransformer, ImageTransformer, MoRE, XRayProcessor
from collimate_medical.prompts import WORLD_FINDINGS

DEMO = Path(__file__).parents[2] / "configs/medical/more_demo.yaml"


def small(recipe):
    """The demo with three steps, little towers and few patients."""
    model = recipe["model"]["init_args"]
    model["xray_encoder"]["init_args"] |= {"width": 16, "depth": 1, "heads": 2}
    model["ecg_encoder"]["init_args"] |= {"width": 16, "depth": 1, "heads": 2, "stem_width": 8}
    model["text_encoder"]["init_args"] |= {"width": 16, "layers": 1, "heads": 2}
    recipe["data"] |= {"batch_size": 8, "num_workers": 0}
    recipe["trainer"] |= {"max_steps": 3, "accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 1}
    for kind in recipe["evaluation"].values():
        for arguments in kind.values():
            arguments |= {"limit": 24, "resamples": 5}
    return recipe


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run of the demo in small."""
    folder = tmp_path_factory.mktemp("medical")
    recipe = small(yaml.safe_load(DEMO.read_text()))
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"output": str(folder / "run")}))
    main(["medical", "train", f"--config={folder / 'recipe.yaml'}"])
    return folder / "run"


def test_training_ends_with_a_report_of_each_modality(run):
    written = json.loads((run / "report.json").read_text())
    xrays, ecgs = (written[f"Zero-shot findings: findings of {name}"] for name in ("X-rays", "ECGs"))
    assert [row["label"] for row in xrays["per_label"]] == list(WORLD_FINDINGS["world-xray"])
    assert [row["label"] for row in ecgs["per_label"]] == list(WORLD_FINDINGS["world-ecg"])
    assert "xray_retrieval_recall@10" in written["Retrieval: X-rays and reports"]["metrics"]
    assert "ecg_retrieval_recall@10" in written["Retrieval: ECGs and reports"]["metrics"]
    assert "ecg_retrieval_recall@10" in written["Retrieval: X-rays and ECGs"]["metrics"]
    drawn = {name.rpartition("/")[2] for name in written["Training"]}
    assert {"text_xray", "text_ecg"} <= drawn
    assert load(run / "model").modalities == ("xray", "ecg", "text")


def test_verbs_on_the_run(run, tmp_path, capsys):
    data, options = "world-patients:test?patients=16&seconds=5&missing=0.3", ["--device=cpu"]
    common = [f"--checkpoint={run / 'model'}", *options]
    main(["medical", "zero-shot", *common, f"--data={data}", "--modality=ecg", "--findings=world-ecg",
          f"--output={tmp_path / 'z'}", "--resamples=5"])  # fmt: skip
    main(["medical", "retrieval", *common, f"--data={data}", "--modality=xray", "--against=ecg",
          f"--output={tmp_path / 'r'}", "--resamples=5"])  # fmt: skip
    main(["medical", "embed", *common, f"--data={data}", "--modalities=[xray,ecg]", f"--output={tmp_path / 'e'}"])
    labelled = "world-patients:{}?patients=24&seconds=5&label=tachycardia"
    main(["medical", "probe", *common, f"--train={labelled.format('train')}", f"--test={labelled.format('test')}",
          "--modality=ecg", "--kinds=[knn]", "--random_encoder=false", f"--output={tmp_path / 'p'}"])  # fmt: skip
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("auroc", "xray_retrieval_recall@1", "knn/acc1"))
    found = json.loads((tmp_path / "z" / "report.json").read_text())["Zero-shot findings"]
    lacking = sum("ecg.npz" not in sample for sample in map(open_source(data).read, range(16)))
    assert found["protocol"]["without"] == f"ecg: {lacking}"


def test_every_verb_is_there():
    verbs = installed_apps()["medical"].all_verbs
    assert {"train", "zero-shot", "explain", "probe-shares", "import-mimic-cxr"} <= verbs.keys()
    for verb in verbs.values():
        module, _, function = verb.target.partition(":")
        assert callable(getattr(import_module(module), function))


def test_an_explanation_is_drawn(run, tmp_path):
    data = "world-patients:test?patients=4&seconds=5"
    main(["medical", "explain", f"--checkpoint={run / 'model'}", f"--data={data}", "--samples=[1]", "--device=cpu",
          f"--output={tmp_path / 'x'}"])  # fmt: skip
    assert (tmp_path / "x" / "report.html").stat().st_size > 10_000


def test_export_merges_low_rank_updates(tmp_path):
    sizes = {"width": 16, "depth": 1, "heads": 2}
    text = LoRA(OpenClipTextEncoder(width=16, heads=2, layers=1, context_length=12), rank=2)
    for name, weight in text.named_parameters():
        if "lora_B" in name:
            weight.data.normal_()  # they start at zero
    model = MoRE(
        ImageTransformer(32, 16, **sizes), ECGTransformer(100, stem_width=8, **sizes), text,
        XRayProcessor(32), ECGProcessor(seconds=1), ClipTokenizer(12), embed_dim=8,
    ).eval()  # fmt: skip
    differences = export(model, tmp_path / "model", "collimate")
    assert differences.keys() == {"xray", "ecg", "text"}
    assert max(differences.values()) < 1e-4
    (weights,) = (tmp_path / "model").glob("*.safetensors")
    with safe_open(weights, "pt") as file:
        assert not any("lora" in name for name in file.keys())  # noqa: SIM118 - no dict


def test_the_demo_tests_patients_whom_training_never_sees():
    recipe = yaml.safe_load(DEMO.read_text())
    specs = [arguments["data"] for kind in recipe["evaluation"].values() for arguments in kind.values()]
    tested = {sample["patient.cls"] for sample in map(open_source(specs[0]).read, range(50))}
    (train,) = recipe["data"]["train"]
    seen = {sample["patient.cls"] for sample in map(open_source(train).read, range(50))}
    assert not tested & seen
    assert all(open_source(spec).split == "test" for spec in specs)
    assert open_source(train).split == "train"
