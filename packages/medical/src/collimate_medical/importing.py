"""Public data sets of X-rays and ECGs, as their publishers lay them out, to tables that are sources like any other.

A row of a table has what `collimate_medical.tables.COLUMNS` lists, of which `split` is `train`, `val` or `test` by
patient, so that `mimic.jsonl?split=test` is data, and `wfdb:ptb_xl.jsonl?split=test` for ECGs. MIMIC's publishers have
shifted dates for each patient, the same way in all of its modules; those are kept (`when`), as pairs need them. None of
these data sets may be passed on: keep a table as you keep the data.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from collimate_medical.reports import cleaned, report_text
from collimate_medical.tables import finding_value, part_of, present, pseudonym, read_table, write_rows

CHEXPERT_LABELS = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
"""In CheXpert's order; MIMIC-CXR has the same ones in the alphabet's."""

CHEST_XRAY14_LABELS = (
    "Atelectasis",
    "Cardiomegaly",
    "Effusion",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pneumonia",
    "Pneumothorax",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Fibrosis",
    "Pleural_Thickening",
    "Hernia",
)

FRONTAL = ("PA", "AP")
EDEMA_GRADES = ("0", "1", "2", "3")
MIMIC_PARTS = {"train": "train", "validate": "val", "test": "test"}
ECG_LINES = 18  # report_0 to report_17 of machine_measurements.csv
Labeller = Literal["chexpert", "negbio", "none"]
Level = Literal["superclass", "subclass", "form", "rhythm", "all"]


# MIMIC ------------------------------------------------------------------------------------------------------------


def import_mimic_cxr(
    root: str,
    output: str,
    reports: str | None = None,
    labels: Labeller = "chexpert",
    views: Sequence[str] = FRONTAL,
) -> None:
    """Write the table of MIMIC-CXR-JPG 2.x, or of MIMIC-CXR's DICOM files with its tables beside them.

    Args:
        root: the folder with `files` and the tables `mimic-cxr-2.0.0-metadata.csv`, `-split.csv` and `-chexpert.csv` or
            `-negbio.csv`, packed (.gz) or not.
        output: the table, a .jsonl file.
        reports: the folder of MIMIC-CXR whose `files` hold the reports, where that is another one than `root`.
        labels: whose labels; none for no column of them.
        views: of which projections; an empty list takes all.

    Raises:
        FileNotFoundError: a table, or every picture, is missing.
        ValueError: a table lacks a column or has a wrong value, or output is no .jsonl file.
    """
    folder, texts = Path(root), Path(reports or root)
    split_table = folder / "mimic-cxr-2.0.0-split.csv"
    splits = {}
    for row in read_table(split_table, ("dicom_id", "split")):
        if row["split"] not in MIMIC_PARTS:
            raise ValueError(f"{split_table.name}: column 'split': {row['split']!r} is none of {list(MIMIC_PARTS)}.")
        splits[row["dicom_id"]] = MIMIC_PARTS[row["split"]]
    findings = {} if labels == "none" else dict(_mimic_findings(folder / f"mimic-cxr-2.0.0-{labels}.csv"))
    suffix = _picture_suffix(folder)
    left_out = Counter[str]()

    def rows() -> Iterator[dict[str, Any]]:
        metadata = folder / "mimic-cxr-2.0.0-metadata.csv"
        columns = ("dicom_id", "subject_id", "study_id", "ViewPosition", "StudyDate", "StudyTime")
        for row in read_table(metadata, columns):
            if views and row["ViewPosition"] not in views:
                left_out["another view"] += 1
                continue
            if row["dicom_id"] not in splits:
                left_out["picture without a split"] += 1
                continue
            subject, study = row["subject_id"], row["study_id"]
            place = _mimic_place(subject, study)
            own = findings.get(study, {})
            yield {
                "file": folder / place / f"{row['dicom_id']}{suffix}",
                "split": splits[row["dicom_id"]],
                "patient": pseudonym("mimic", subject),
                "study": pseudonym("mimic-cxr", study),
                "when": _mimic_moment(row["StudyDate"], row["StudyTime"], metadata),
                "view": row["ViewPosition"] or None,
                "captions": _read_report((texts / place).with_suffix(".txt")),
                **({} if labels == "none" else {"findings": own, "labels": present(own)}),
            }

    write_rows(rows(), output, "MIMIC-CXR", left_out)


def import_mimic_edema(root: str, table: str, output: str, val_fold: str = "5") -> None:
    """Write the table of pulmonary edema's severity in MIMIC-CXR-JPG: 0 none, 1 congestion, 2 interstitial, 3 alveolar.

    Of the edema labels of Horng et al. 2021 (Radiology: Artificial Intelligence 3, e190228), a table whose columns are
    `subject_id`, `study_id`, `dicom_id`, `edeme_severity` (as they spell it) and `fold`: 1 to 5, or TEST for those that
    radiologists graded. `probe-severity` reads it.

    Args:
        root: the folder of MIMIC-CXR-JPG, or of MIMIC-CXR's DICOM files, with `files`.
        table: the labels, a .csv file.
        output: the table, a .jsonl file.
        val_fold: which of the numbered folds is `val`; the others are `train`.

    Raises:
        FileNotFoundError: the labels, or every picture, are missing.
        ValueError: the labels lack a column or have a wrong value, a patient is in two folds, or output is no .jsonl
            file.
    """
    folder, labels = Path(root), Path(table)
    suffix = _picture_suffix(folder)

    def rows() -> Iterator[dict[str, Any]]:
        for row in read_table(labels, ("subject_id", "study_id", "dicom_id", "edeme_severity", "fold")):
            grade = row["edeme_severity"].removesuffix(".0")
            if grade not in EDEMA_GRADES:
                raise ValueError(f"{labels.name}: column 'edeme_severity': {grade!r} is none of {list(EDEMA_GRADES)}.")
            fold, subject, study = row["fold"], row["subject_id"], row["study_id"]
            yield {
                "file": folder / _mimic_place(subject, study) / f"{row['dicom_id']}{suffix}",
                "split": "test" if fold == "TEST" else "val" if fold == val_fold else "train",
                "patient": pseudonym("mimic", subject),
                "study": pseudonym("mimic-cxr", study),
                "severity": int(grade),
            }

    write_rows(rows(), output, "MIMIC-CXR's edema severity")


def import_mimic_ecg(root: str, output: str, cxr: str | None = None) -> None:
    """Write the table of MIMIC-IV-ECG 1.0; it is read as `wfdb:<table>`.

    Reports are all lines of the machine, of which published code often takes the first seven.

    Args:
        root: the folder with `files`, `record_list.csv` and `machine_measurements.csv`.
        output: the table, a .jsonl file.
        cxr: the folder of MIMIC-CXR's tables. Its patients are in the part that its official split puts them in;
            others, and all without it, are shared out by a number made of their own.

    Raises:
        FileNotFoundError: a table, or every record, is missing.
        ValueError: a table lacks a column or has a wrong value, or output is no .jsonl file.
    """
    folder, lines = Path(root), tuple(f"report_{number}" for number in range(ECG_LINES))
    official = {}
    if cxr is not None:
        for row in read_table(Path(cxr) / "mimic-cxr-2.0.0-split.csv", ("subject_id", "split")):
            official[row["subject_id"]] = MIMIC_PARTS.get(row["split"])
    texts = {}
    for row in read_table(folder / "machine_measurements.csv", ("study_id", *lines)):
        said = [cleaned(row[line]).rstrip(".") for line in lines if row[line].strip()]
        texts[row["study_id"]] = ". ".join(said) + "." if said else None

    def rows() -> Iterator[dict[str, Any]]:
        table = folder / "record_list.csv"
        for row in read_table(table, ("subject_id", "study_id", "ecg_time", "path")):
            patient = pseudonym("mimic", row["subject_id"])
            yield {
                "file": folder / f"{row['path']}.hea",
                "split": official.get(row["subject_id"]) or part_of(patient),
                "patient": patient,
                "study": pseudonym("mimic-iv-ecg", row["study_id"]),
                "when": _moment(row["ecg_time"], "%Y-%m-%d %H:%M:%S", table, "ecg_time"),
                "captions": _listed(texts.get(row["study_id"])),
            }

    write_rows(rows(), output, "MIMIC-IV-ECG")


def _mimic_findings(path: Path) -> Iterator[tuple[str, dict[str, int]]]:
    for row in read_table(path, ("study_id", *sorted(CHEXPERT_LABELS))):
        yield row["study_id"], _known(row, sorted(CHEXPERT_LABELS), path)


def _mimic_place(subject: str, study: str) -> Path:
    return Path("files") / f"p{subject[:2]}" / f"p{subject}" / f"s{study}"


def _picture_suffix(folder: Path) -> str:
    """Of MIMIC-CXR-JPG's pictures, or of MIMIC-CXR's."""
    return ".jpg" if any((folder / "files").glob("p*/p*/s*/*.jpg")) else ".dcm"


def _mimic_moment(date: str, time: str, path: Path) -> str:
    """Times are numbers such as 91531.234, without the zeros in front."""
    return _moment(f"{date} {time.partition('.')[0].zfill(6)}", "%Y%m%d %H%M%S", path, "StudyDate")


# CheXpert and ChestX-ray14 ----------------------------------------------------------------------------------------


def import_chexpert(root: str, output: str, views: Literal["frontal", "all"] = "frontal") -> None:
    """Write the table of CheXpert: `train.csv`, `valid.csv` and, where it is there, `test.csv`.

    Its valid and test studies were labelled by radiologists, its train studies from their reports.

    Args:
        root: the folder with the tables, such as `CheXpert-v1.0-small`. The paths in its tables begin with that name.
        output: the table, a .jsonl file.
        views: frontal X-rays, or lateral ones too.

    Raises:
        FileNotFoundError: a table, or every picture, is missing.
        ValueError: a table lacks a column or has a wrong value, or output is no .jsonl file.
    """
    folder, left_out = Path(root), Counter[str]()

    def rows() -> Iterator[dict[str, Any]]:
        for name, part in (("train", "train"), ("valid", "val"), ("test", "test")):
            table = folder / f"{name}.csv"
            if part == "test" and not table.is_file():
                continue
            for row in read_table(table, ("Path", "Frontal/Lateral", "AP/PA", *CHEXPERT_LABELS)):
                if views == "frontal" and row["Frontal/Lateral"] != "Frontal":
                    left_out["lateral view"] += 1
                    continue
                parts = Path(row["Path"]).parts
                if len(parts) < 4:
                    raise ValueError(
                        f"{table.name}: column 'Path': {row['Path']!r}, where "
                        "CheXpert-.../train/patient00001/study1/view1_frontal.jpg is expected."
                    )
                findings = _known(row, CHEXPERT_LABELS, table)
                yield {
                    "file": folder / Path(*parts[-4:]),
                    "split": part,
                    "patient": pseudonym("chexpert", parts[-3]),
                    "study": pseudonym("chexpert", *parts[-3:-1]),
                    "view": row["AP/PA"] or row["Frontal/Lateral"],
                    "findings": findings,
                    "labels": present(findings),
                }

    write_rows(rows(), output, "CheXpert", left_out)


def import_chest_xray14(root: str, output: str, val_share: float = 0.1, views: Sequence[str] = FRONTAL) -> None:
    """Write the table of the NIH's ChestX-ray14, with its official test patients.

    Args:
        root: the folder with `Data_Entry_2017.csv` or `Data_Entry_2017_v2020.csv`, `train_val_list.txt`,
            `test_list.txt` and the pictures, in `images` or in `images_001/images` to `images_012/images`.
        output: the table, a .jsonl file.
        val_share: of the patients that are not for testing.
        views: of which projections; an empty list takes all.

    Raises:
        FileNotFoundError: a table, or every picture, is missing.
        ValueError: a table lacks a column or has a wrong value, or output is no .jsonl file.
    """
    folder, left_out = Path(root), Counter[str]()
    tables = [folder / name for name in ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")]
    table = next((each for each in tables if each.is_file()), tables[-1])
    pictures = {path.name: path for path in sorted(folder.rglob("*.png"))}
    lists = {name: set(_lines(folder / f"{name}_list.txt")) for name in ("train_val", "test")}

    def rows() -> Iterator[dict[str, Any]]:
        for row in read_table(table, ("Image Index", "Finding Labels", "Patient ID", "View Position")):
            name, patient = row["Image Index"], pseudonym("chest-xray14", row["Patient ID"])
            if views and row["View Position"] not in views:
                left_out["another view"] += 1
                continue
            if name not in lists["train_val"] and name not in lists["test"]:
                left_out["picture in no list"] += 1
                continue
            found = [label for label in row["Finding Labels"].split("|") if label != "No Finding"]
            if unknown := [label for label in found if label not in CHEST_XRAY14_LABELS]:
                raise ValueError(f"{table.name}: column 'Finding Labels': {unknown[0]!r} is none of its 14 labels.")
            part = "test" if name in lists["test"] else part_of(patient, (1 - val_share, val_share))
            yield {
                "file": pictures.get(name, folder / "images" / name),
                "split": part,
                "patient": patient,
                "view": row["View Position"] or None,
                "findings": {label: int(label in found) for label in CHEST_XRAY14_LABELS},
                "labels": found,
            }

    write_rows(rows(), output, "ChestX-ray14", left_out)


# PTB-XL -----------------------------------------------------------------------------------------------------------


def import_ptb_xl(root: str, output: str, rate: Literal[100, 500] = 500, level: Level = "superclass") -> None:
    """Write the table of PTB-XL 1.0.x; it is read as `wfdb:<table>`. Folds 1 to 8 are train, 9 is val, 10 is test.

    A code counts whatever likelihood it has, 0 too, which means unknown (Strodthoff et al. 2020, arXiv 2004.13701).

    Args:
        root: the folder with `ptbxl_database.csv`, `scp_statements.csv` and the records.
        output: the table, a .jsonl file.
        rate: of the records, in Hz.
        level: of the labels: diagnostic super-classes (NORM, MI, STTC, CD, HYP) or sub-classes; codes of form, of
            rhythm, or all.

    Raises:
        FileNotFoundError: a table, or every record, is missing.
        ValueError: a table lacks a column or has a wrong value, or output is no .jsonl file.
    """
    folder = Path(root)
    classes = _statements(folder / "scp_statements.csv", level)
    names = list(dict.fromkeys(classes.values()))
    table, file = folder / "ptbxl_database.csv", "filename_hr" if rate == 500 else "filename_lr"

    def rows() -> Iterator[dict[str, Any]]:
        for row in read_table(table, ("ecg_id", "patient_id", "report", "scp_codes", "strat_fold", file)):
            found = {classes[code] for code in _codes(row["scp_codes"], table) if code in classes}
            findings = {name: int(name in found) for name in names}
            fold = _fold(row["strat_fold"], table)
            yield {
                "file": folder / f"{row[file]}.hea",
                "split": "train" if fold <= 8 else {9: "val", 10: "test"}[fold],
                "patient": pseudonym("ptb-xl", str(int(float(row["patient_id"])))),
                "study": pseudonym("ptb-xl-record", row["ecg_id"]),
                "captions": _listed(cleaned(row["report"])),
                "findings": findings,
                "labels": present(findings),
            }

    write_rows(rows(), output, "PTB-XL")


def _statements(path: Path, level: Level) -> dict[str, str]:
    """SCP code -> the label that it counts for at a level."""
    column = {"superclass": "diagnostic_class", "subclass": "diagnostic_subclass"}.get(level)
    code = ""  # the index has no name
    found = {}
    for row in read_table(path, (code, "diagnostic", "form", "rhythm", "diagnostic_class", "diagnostic_subclass")):
        if column is None:
            if level == "all" or row[level].strip():
                found[row[code]] = row[code]
        elif row["diagnostic"].strip() and row[column].strip():
            found[row[code]] = row[column]
    return found


def _codes(text: str, path: Path) -> list[str]:
    """The codes of a dictionary that is written as Python; nothing in it is run."""
    try:
        codes = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        codes = None
    if not isinstance(codes, dict):
        raise ValueError(f"{path.name}: column 'scp_codes': {text[:40]!r}, where {{'NORM': 100.0, ...}} is expected.")
    return [str(code) for code in codes]


def _fold(text: str, path: Path) -> int:
    fold = int(float(text)) if text.replace(".", "", 1).isdecimal() else 0
    if not 1 <= fold <= 10:
        raise ValueError(f"{path.name}: column 'strat_fold': {text!r}, where 1 to 10 is expected.")
    return fold


# Cells ------------------------------------------------------------------------------------------------------------


def _known(row: Mapping[str, str], labels: Sequence[str], path: Path) -> dict[str, int]:
    """The labels that a row says something of."""
    values = {label: finding_value(row[label], path, label) for label in labels}
    return {label: value for label, value in values.items() if value is not None}


def _moment(text: str, form: str, path: Path, column: str) -> str:
    try:
        return datetime.strptime(text, form).isoformat()
    except ValueError:
        raise ValueError(f"{path.name}: column {column!r}: {text!r} is no date with a time.") from None


def _listed(text: str | None) -> list[str] | None:
    return [text] if text else None


def _read_report(path: Path) -> list[str] | None:
    return _listed(report_text(path.read_text(encoding="utf-8", errors="replace"))) if path.is_file() else None


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path.name} in {path.parent}.")
    return path.read_text(encoding="utf-8").split()
