"""Cross-validation: each fold is judged by a model that has not seen it, once, and an interrupted run goes on."""

import csv
import json

import pytest

from collimate.data import open_source
from collimate.evaluation.answers import answer, judge
from collimate_audio import cross_validation
from collimate_audio.cross_validation import cross_validate, folds_of

from .test_fine_tuning import NAMES, recipe, table, tone  # noqa: F401 - a fixture


@pytest.fixture
def folds(table):  # noqa: F811
    """The table with a column of folds."""
    path = table.parent / "folds.csv"
    rows = list(csv.DictReader(table.open()))
    with path.open("w") as file:
        file.write("file,label,fold\n")
        file.writelines(f"{row['file']},{row['label']},{number // 3 % 3 + 1}\n" for number, row in enumerate(rows))
    return path


@pytest.mark.filterwarnings("ignore")
def test_folds_are_judged_by_models_that_have_not_seen_them(folds, tmp_path, monkeypatch, capsys):
    path = recipe(folds, tmp_path / "r", 2, data={"train": str(folds), "val": None, "batch_size": 9})
    arguments = [f"--config={path}", f"--output={tmp_path / 'cv'}", "--checkpoint.every_steps=1"]
    cross_validate(arguments, "collimate audio cross-validate")
    report = json.loads((tmp_path / "cv" / "report.json").read_text())
    found = [json.loads((tmp_path / "cv" / f"fold_{fold}" / "result.json").read_text()) for fold in (1, 2, 3)]
    mean = sum(each["metrics"]["acc1"] for each in found) / 3
    assert report["Cross-validation"]["metrics"]["acc1"] == pytest.approx(mean)
    for fold, each in enumerate(found, 1):
        assert each["protocol"]["data"] == f"{folds}?fold={fold}"
        assert each["protocol"]["samples"] == 12
        config = (tmp_path / "cv" / f"fold_{fold}" / "config.yaml").read_text()
        others = ",".join(str(other) for other in (1, 2, 3) if other != fold)
        assert f"{folds}?fold=[{others}]" in config
    (tmp_path / "cv" / "fold_2" / "result.json").unlink()
    again = []
    monkeypatch.setattr(
        cross_validation, "_train", lambda given, *_: again.append(given) or tmp_path / "cv" / "fold_2" / "model"
    )
    cross_validate(arguments, "collimate audio cross-validate")
    assert len(again) == 1
    assert json.loads((tmp_path / "cv" / "report.json").read_text()) == report
    with pytest.raises(ValueError, match="other data or settings"):
        cross_validate([*arguments, "--optimization.lr=1"], "collimate audio cross-validate")
    with pytest.raises(ValueError, match="no fold '7'"):
        cross_validate([*arguments, "--folds", "7"], "collimate audio cross-validate")


def test_folds_are_a_column_of_a_table(folds, tmp_path):
    assert folds_of(str(folds), "fold") == ["1", "2", "3"]
    assert folds_of(str(folds), "label") == sorted(NAMES)
    with pytest.raises(ValueError, match="no column 'part'"):
        folds_of(str(folds), "part")
    with pytest.raises(ValueError, match="two or more"):
        folds_of(f"{folds}?fold=1", "fold")
    with pytest.raises(ValueError, match="is none"):
        folds_of(str(folds.parent) + "?extensions=[wav]", "fold")


def test_answers_are_written_and_judged(folds, tmp_path):
    from .test_fine_tuning import ClassLabels, classifier

    for exclusive in (True, False):
        model = classifier(ClassLabels(sorted(NAMES), exclusive=exclusive)).eval()
        answers = answer(model, open_source(f"{folds}?fold=1"), batch_size=5)
        assert answers.probabilities.shape == (12, 3)
        direct = model.classify([folds.parent / "0.wav"], top=1)[0]
        answers.write(tmp_path / "answers.csv", top=1)
        first = next(csv.DictReader((tmp_path / "answers.csv").open()))
        assert first["key"] == "0:0.wav"
        assert first["labels"] == "low"
        assert first["class 1"] == next(iter(direct))
        assert float(first["probability 1"]) == pytest.approx(next(iter(direct.values())), abs=1e-4)
        result = judge(answers, model, resamples=20)
        assert result.metrics["acc1" if exclusive else "mAP"] is not None
        from collimate.evaluation.report import Report

        result.add_to(report := Report("x"))
        assert report.save(tmp_path / "report").is_file()


def test_data_without_labels_is_answered_but_not_judged(folds, tmp_path):
    from .test_fine_tuning import ClassLabels, classifier

    source = open_source(str(folds.parent), extensions=("wav",))
    model = classifier(ClassLabels(NAMES)).eval()
    answers = answer(model, source, limit=4)
    assert answers.targets is None
    answers.write(tmp_path / "answers.csv")
    assert "labels" not in (tmp_path / "answers.csv").read_text().splitlines()[0]
    with pytest.raises(ValueError, match="no labels"):
        judge(answers, model)
