"""Tables of public data sets, from small ones in their publishers' layout, with their columns exactly."""

import csv
import gzip
import json

import numpy as np
import pytest
import wfdb
from PIL import Image

from collimate.data import EvalLoader, open_source
from collimate_medical import ECGProcessor, ImageTransformer, XRayProcessor, evaluate_severity
from collimate_medical.importing import (
    CHEST_XRAY14_LABELS,
    CHEXPERT_LABELS,
    import_chest_xray14,
    import_chexpert,
    import_mimic_cxr,
    import_mimic_ecg,
    import_mimic_edema,
    import_ptb_xl,
)
from collimate_medical.reports import report_sections, report_text
from collimate_medical.tables import COLUMNS, part_of, pseudonym

REPORT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___ year old woman with cough  // eval for pneumonia

 FINDINGS:

 The lungs are clear.  Heart size is normal, as on ___.
 No effusion.

 IMPRESSION:

 No acute process.  Discussed with Dr. ___ by phone at 9:15 am on ___.
"""


def write_csv(path, header, rows, packed=False):
    with gzip.open(f"{path}.gz", "wt", newline="") if packed else open(path, "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((np.arange(64).reshape(8, 8) * 4).astype(np.uint8)).save(path)


def record(path, rate=500):
    path.parent.mkdir(parents=True, exist_ok=True)
    signal = np.sin(np.arange(10 * rate)[:, None] / 40 + np.arange(12))
    leads = ["I", "II", "III", "AVR", "AVL", "AVF", "V1", "V2", "V3", "V4", "V5", "V6"]
    wfdb.wrsamp(path.name, rate, ["mV"] * 12, leads, signal, fmt=["16"] * 12, write_dir=str(path.parent))


def rows_of(path):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert all(list(row) == list(rows[0]) for row in rows)  # a table's columns are those of its first row
    assert set(rows[0]) <= set(COLUMNS)
    return rows


@pytest.fixture
def mimic(tmp_path):
    """Three patients: one with two views, one in the test split, one with a picture that is not there."""
    root = tmp_path / "mimic"
    studies = [
        ("10000032", "50414267", "a-1", "PA", "train", "21800506", "213014.531"),
        ("10000032", "50414267", "a-2", "LATERAL", "train", "21800506", "213014.531"),
        ("10000764", "57375967", "b-1", "AP", "test", "21321015", "83101.5"),
        ("10000898", "50771383", "c-1", "PA", "validate", "21880323", "0.0"),
    ]
    for subject, study, name, *_ in studies[:3]:
        picture(root / f"files/p10/p{subject}/s{study}/{name}.jpg")
    (root / "files/p10/p10000032/s50414267.txt").write_text(REPORT)
    metadata = "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns,StudyDate,"
    metadata += "StudyTime,ProcedureCodeSequence_CodeMeaning,ViewCodeSequence_CodeMeaning,"
    metadata += "PatientOrientationCodeSequence_CodeMeaning"
    write_csv(
        root / "mimic-cxr-2.0.0-metadata.csv",
        metadata.split(","),
        [[n, p, s, "CHEST (PA AND LAT)", view, 8, 8, d, t, "", "", "Erect"] for p, s, n, view, _, d, t in studies],
        packed=True,
    )
    write_csv(
        root / "mimic-cxr-2.0.0-split.csv",
        ["dicom_id", "study_id", "subject_id", "split"],
        [[n, s, p, split] for p, s, n, _, split, *_ in studies],
        packed=True,
    )
    labels = {"Edema": ("-1.0", ""), "Pneumonia": ("0.0", "1.0"), "Cardiomegaly": ("1.0", "")}
    write_csv(
        root / "mimic-cxr-2.0.0-chexpert.csv",
        ["subject_id", "study_id", *sorted(CHEXPERT_LABELS)],
        [
            [p, s, *[labels.get(name, ("", ""))[row] for name in sorted(CHEXPERT_LABELS)]]
            for row, (p, s) in enumerate((("10000032", "50414267"), ("10000764", "57375967")))
        ],
        packed=True,
    )
    return root


def test_mimic_cxr(mimic, tmp_path, capsys):
    import_mimic_cxr(str(mimic), str(tmp_path / "tables/cxr.jsonl"))
    first, second = rows_of(tmp_path / "tables/cxr.jsonl")
    assert first["file"] == "../mimic/files/p10/p10000032/s50414267/a-1.jpg"
    assert [first["split"], second["split"]] == ["train", "test"]
    assert [first["when"], second["when"]] == ["2180-05-06T21:30:14", "2132-10-15T08:31:01"]
    assert first["captions"] == ["The lungs are clear. Heart size is normal, as on. No effusion. No acute process."]
    assert second["captions"] is None
    assert first["findings"] == {"Cardiomegaly": 1, "Edema": -1, "Pneumonia": 0}
    assert [first["labels"], second["labels"]] == [["Cardiomegaly"], ["Pneumonia"]]
    said = capsys.readouterr().out
    assert "1 train (1 patients), 1 test (1 patients)" in " ".join(said.split())
    assert "1 x another view" in said
    assert "1 x file not there" in said


def test_a_table_is_a_source(mimic, tmp_path):
    import_mimic_cxr(str(mimic), str(tmp_path / "cxr.jsonl"))
    source = open_source(f"{tmp_path}/cxr.jsonl?split=train&columns={{patient.cls: patient}}")
    batch = next(iter(EvalLoader(source, {"xray": XRayProcessor(32)}, 1, also=["patient.cls", "captions", "json"])))
    assert batch["xray"].shape == (1, 3, 32, 32)
    assert int(batch["patient.cls"][0]) == pseudonym("mimic", "10000032")
    assert batch["captions"][0][0].startswith("The lungs")
    assert source.class_names == ["Cardiomegaly", "Pneumonia"]


def test_nothing_that_identifies_is_copied(mimic, tmp_path):
    import_mimic_cxr(str(mimic), str(tmp_path / "cxr.jsonl"), views=[])
    for row in rows_of(tmp_path / "cxr.jsonl"):
        row.pop("file")  # the publisher's own path
        assert not any(each in json.dumps(row) for each in ("10000032", "10000764", "50414267", "Erect", "9:15", "Dr"))


def test_mimic_ecg(mimic, tmp_path):
    root = tmp_path / "ecg"
    records = [("10000032", "40689238"), ("10000764", "44458630"), ("19999999", "49036311")]
    for subject, study in records:
        record(root / f"files/p{subject[:4]}/p{subject}/s{study}/{study}")
    write_csv(
        root / "record_list.csv",
        ["subject_id", "study_id", "file_name", "ecg_time", "path"],
        [[p, s, s, "2180-07-23 08:44:00", f"files/p{p[:4]}/p{p}/s{s}/{s}"] for p, s in records],
    )
    header = ["subject_id", "study_id", "cart_id", "ecg_time", *[f"report_{n}" for n in range(18)]]
    header += ["bandwidth", "filtering", "rr_interval", "p_onset", "p_end", "qrs_onset", "qrs_end", "t_end"]
    header += ["p_axis", "qrs_axis", "t_axis"]
    lines = ["Sinus rhythm", "", "Possible infarct - age undetermined.", *[""] * 14, "Abnormal ECG"]
    write_csv(
        root / "machine_measurements.csv",
        header,
        [[p, s, "6848296", "2180-07-23 08:44:00", *lines, *["29999"] * 11] for p, s in records[:2]],
    )
    import_mimic_ecg(str(root), str(tmp_path / "ecg.jsonl"), cxr=str(mimic))
    first, second, third = rows_of(tmp_path / "ecg.jsonl")
    assert first["captions"] == ["Sinus rhythm. Possible infarct - age undetermined. Abnormal ECG."]
    assert [first["split"], second["split"]] == ["train", "test"]
    assert third["split"] == part_of(third["patient"])
    assert third["captions"] is None
    assert first["when"] == "2180-07-23T08:44:00"
    import_mimic_cxr(str(mimic), str(tmp_path / "cxr.jsonl"))
    assert first["patient"] == rows_of(tmp_path / "cxr.jsonl")[0]["patient"]  # in both modules
    source = open_source(f"wfdb:{tmp_path}/ecg.jsonl?split=train")
    assert next(iter(EvalLoader(source, {"ecg": ECGProcessor()}, 1)))["ecg"].shape == (1, 12, 1000)


@pytest.fixture
def edema(tmp_path):
    """Pictures that are the brighter, the worse the edema; two of each patient, a third of the patients for testing."""
    root, rows = tmp_path / "mimic", []
    rng = np.random.default_rng(0)
    for number in range(48):
        subject, study, name, grade = f"1{number // 2:07}", f"5{number:07}", f"d-{number}", int(rng.integers(4))
        path = root / f"files/p{subject[:2]}/p{subject}/s{study}/{name}.jpg"
        path.parent.mkdir(parents=True)
        pixels = 40 + 40 * grade + rng.integers(0, 30, (32, 32))
        Image.fromarray(pixels.astype(np.uint8)).save(path)
        rows.append([subject, study, name, grade, "TEST" if number % 6 < 2 else number // 2 % 5 + 1])
    header = ["subject_id", "study_id", "dicom_id", "edeme_severity", "fold"]
    write_csv(tmp_path / "edema.csv", header, rows)
    return root, header, rows


def test_severity_of_edema_from_table_to_probe(edema, tmp_path):
    root, _, labels = edema
    import_mimic_edema(str(root), str(tmp_path / "edema.csv"), str(tmp_path / "edema.jsonl"), val_fold="4")
    rows = rows_of(tmp_path / "edema.jsonl")
    assert [row["severity"] for row in rows] == [row[3] for row in labels]
    assert {row["split"]: labels[place][4] for place, row in enumerate(rows)}["val"] == 4
    encoder = ImageTransformer(32, 16, width=16, depth=1, heads=2, dropkey=0.0)
    encoder.processor = XRayProcessor(32)
    train, test = (open_source(f"{tmp_path}/edema.jsonl?split={part}") for part in ("train", "test"))
    found = evaluate_severity(encoder, train, test, random_encoder=False, device="cpu", resamples=20)
    assert found.metrics["auroc"] > 0.9
    assert found.metrics["quadratic_kappa"] > 0.6


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [(3, "4", "'4' is none of"), (4, "2", "Patients are in two parts of the data: 1 in train and test")],
)
def test_wrong_grades_and_folds(edema, tmp_path, column, value, message):
    root, header, rows = edema
    rows[0][column] = value
    write_csv(tmp_path / "edema.csv", header, rows)
    with pytest.raises(ValueError, match=message):
        import_mimic_edema(str(root), str(tmp_path / "edema.csv"), str(tmp_path / "edema.jsonl"))


@pytest.fixture
def chexpert(tmp_path):
    root = tmp_path / "CheXpert-v1.0-small"
    header = ["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *CHEXPERT_LABELS]

    def row(path, view, **labels):
        picture(tmp_path / path)
        front = ["Frontal", view] if view else ["Lateral", ""]
        return [path, "Female", "68", *front, *[labels.get(name.replace(" ", "_"), "") for name in CHEXPERT_LABELS]]

    name = root.name
    train = [
        row(f"{name}/train/patient00001/study1/view1_frontal.jpg", "AP", No_Finding="1.0", Edema="-1.0"),
        row(f"{name}/train/patient00001/study2/view1_frontal.jpg", "PA", Edema="1.0", Fracture="0.0"),
        row(f"{name}/train/patient00001/study2/view2_lateral.jpg", "", Edema="1.0"),
    ]
    valid = [row(f"{name}/valid/patient64541/study1/view1_frontal.jpg", "AP", Pleural_Effusion="1.0")]
    write_csv(root / "train.csv", header, train)
    write_csv(root / "valid.csv", header, valid)
    return root


def test_chexpert(chexpert, tmp_path):
    import_chexpert(str(chexpert), str(tmp_path / "chexpert.jsonl"))
    first, second, last = rows_of(tmp_path / "chexpert.jsonl")
    assert first["findings"] == {"No Finding": 1, "Edema": -1}
    assert second["labels"] == ["Edema"]
    assert first["patient"] == second["patient"] != last["patient"]
    assert first["study"] != second["study"]
    assert [first["view"], last["split"]] == ["AP", "val"]
    import_chexpert(str(chexpert), str(tmp_path / "all.jsonl"), "all")
    assert [row["view"] for row in rows_of(tmp_path / "all.jsonl")] == ["AP", "PA", "Lateral", "AP"]


def test_chest_xray14(tmp_path):
    root = tmp_path / "nih"
    names = [f"{patient:08d}_{follow:03d}.png" for patient, follow in ((1, 0), (1, 1), (2, 0), (3, 0))]
    for place, name in enumerate(names):
        picture(root / f"images_00{place + 1}/images" / name)
    header = ["Image Index", "Finding Labels", "Follow-up #", "Patient ID", "Patient Age", "Patient Gender"]
    header += ["View Position", "OriginalImage[Width", "Height]", "OriginalImagePixelSpacing[x", "y]"]
    labels = ["Cardiomegaly|Emphysema", "No Finding", "Hernia", "Pleural_Thickening"]
    rows = [
        [name, label, 0, int(name[:8]), 58, "M", view, 2682, 2749, 0.143, 0.143]
        for name, label, view in zip(names, labels, ["PA", "AP", "PA", "AP"], strict=True)
    ]
    write_csv(root / "Data_Entry_2017.csv", header, rows)
    (root / "train_val_list.txt").write_text("\n".join(names[:2]) + "\n")
    (root / "test_list.txt").write_text(f"{names[2]}\n{names[3]}\n")
    import_chest_xray14(str(root), str(tmp_path / "nih.jsonl"))
    found = rows_of(tmp_path / "nih.jsonl")
    assert [row["labels"] for row in found] == [["Cardiomegaly", "Emphysema"], [], ["Hernia"], ["Pleural_Thickening"]]
    assert [row["split"] for row in found[2:]] == ["test", "test"]
    assert found[0]["split"] == found[1]["split"] in ("train", "val")
    assert list(found[1]["findings"].values()) == [0] * len(CHEST_XRAY14_LABELS)
    rows[0][1] = "Cardiomegali"
    write_csv(root / "Data_Entry_2017.csv", header, rows)
    with pytest.raises(ValueError, match=r"Data_Entry_2017.csv: column 'Finding Labels': 'Cardiomegali'"):
        import_chest_xray14(str(root), str(tmp_path / "nih.jsonl"))


@pytest.fixture
def ptb_xl(tmp_path):
    root = tmp_path / "ptbxl"
    header = "ecg_id,patient_id,age,sex,height,weight,nurse,site,device,recording_date,report,scp_codes,heart_axis,"
    header += "infarction_stadium1,infarction_stadium2,validated_by,second_opinion,initial_autogenerated_report,"
    header += "validated_by_human,baseline_drift,static_noise,burst_noise,electrodes_problems,extra_beats,pacemaker,"
    header = (header + "strat_fold,filename_lr,filename_hr").split(",")
    codes = ["{'NORM': 100.0, 'SR': 0.0}", "{'IMI': 35.0, 'LVH': 0.0}", "{'AFIB': 0.0}"]
    rows = []
    for number, (code, fold) in enumerate(zip(codes, (3, 9, 10), strict=True), 1):
        names = [f"records{rate}/00000/0000{number}_{short}" for rate, short in ((100, "lr"), (500, "hr"))]
        record(root / names[0], 100)
        record(root / names[1], 500)
        known = {
            "ecg_id": number,
            "patient_id": f"{15709 + number}.0",
            "age": 300,
            "report": "sinusrhythmus normales ekg",
            "scp_codes": code,
            "strat_fold": fold,
            "filename_lr": names[0],
            "filename_hr": names[1],
            "nurse": "2.0",
        }
        rows.append([known.get(column, "") for column in header])
    write_csv(root / "ptbxl_database.csv", header, rows)
    statements = ",description,diagnostic,form,rhythm,diagnostic_class,diagnostic_subclass,Statement Category,"
    statements += "SCP-ECG Statement Description,AHA code,aECG REFID,CDISC Code,DICOM Code"
    listed = [
        ["NORM", "normal ECG", "1.0", "", "", "NORM", "NORM"],
        ["IMI", "inferior infarction", "1.0", "", "", "MI", "IMI"],
        ["LVH", "left ventricular hypertrophy", "1.0", "", "", "HYP", "LVH"],
        ["SR", "sinus rhythm", "", "", "1.0", "", ""],
        ["AFIB", "atrial fibrillation", "", "", "1.0", "", ""],
    ]
    write_csv(root / "scp_statements.csv", statements.split(","), [[*each, *[""] * 6] for each in listed])
    return root


def test_ptb_xl(ptb_xl, tmp_path):
    import_ptb_xl(str(ptb_xl), str(tmp_path / "ptbxl.jsonl"))
    found = rows_of(tmp_path / "ptbxl.jsonl")
    assert [row["labels"] for row in found] == [["NORM"], ["MI", "HYP"], []]  # a likelihood of 0 counts
    assert [row["split"] for row in found] == ["train", "val", "test"]
    assert found[0]["file"].endswith("_hr.hea")
    assert found[0]["captions"] == ["sinusrhythmus normales ekg"]
    source = open_source(f"wfdb:{tmp_path}/ptbxl.jsonl?split=test")
    assert source.read(0).keys() >= {"ecg.npz", "captions.json", "labels.json"}


@pytest.mark.parametrize(
    ("level", "labels"),
    [
        ("subclass", [["NORM"], ["IMI", "LVH"], []]),
        ("rhythm", [["SR"], [], ["AFIB"]]),
        ("all", [["NORM", "SR"], ["IMI", "LVH"], ["AFIB"]]),
    ],
)
def test_levels_of_ptb_xl(ptb_xl, tmp_path, level, labels):
    import_ptb_xl(str(ptb_xl), str(tmp_path / "ptbxl.jsonl"), 100, level)
    found = rows_of(tmp_path / "ptbxl.jsonl")
    assert [row["labels"] for row in found] == labels
    assert found[0]["file"].endswith("_lr.hea")


def test_codes_are_read_and_never_run(ptb_xl, tmp_path):
    table = ptb_xl / "ptbxl_database.csv"
    table.write_text(table.read_text().replace("{'AFIB': 0.0}", "__import__('os').getcwd()"))
    with pytest.raises(ValueError, match=r"ptbxl_database.csv: column 'scp_codes': \"__import__"):
        import_ptb_xl(str(ptb_xl), str(tmp_path / "ptbxl.jsonl"))


# What is refused --------------------------------------------------------------------------------------------------


def test_missing_files_and_columns_are_named(chexpert, tmp_path):
    out = str(tmp_path / "table.jsonl")
    with pytest.raises(FileNotFoundError, match=r"no train.csv \(or train.csv.gz\)"):
        import_chexpert(str(tmp_path), out)
    with pytest.raises(ValueError, match=r"The table is a .jsonl file, not"):
        import_chexpert(str(chexpert), str(tmp_path / "table.csv"))
    table = chexpert / "train.csv"
    whole = table.read_text()
    table.write_text(whole.replace("Lung Lesion", "Lesion"))
    with pytest.raises(ValueError, match=r"train.csv has no column 'Lung Lesion'; it has Path, Sex"):
        import_chexpert(str(chexpert), out)
    table.write_text(whole.replace("-1.0", "-2.0"))
    with pytest.raises(ValueError, match=r"train.csv: column 'Edema': '-2.0', where 1, 0, -1 or nothing"):
        import_chexpert(str(chexpert), out)
    table.write_text(whole + "broken,row\n")
    with pytest.raises(ValueError, match=r"train.csv: line 5: 2 cells for 19 columns"):
        import_chexpert(str(chexpert), out)
    assert not (tmp_path / "table.jsonl").exists()


def test_pictures_that_are_not_unpacked(chexpert, tmp_path):
    for path in chexpert.rglob("*.jpg"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"view1_frontal.jpg is the first of 3: is it unpacked"):
        import_chexpert(str(chexpert), str(tmp_path / "table.jsonl"))


def test_a_patient_in_two_parts_is_found(mimic, tmp_path):
    with gzip.open(mimic / "mimic-cxr-2.0.0-split.csv.gz", "rt") as file:
        text = file.read().replace("a-2,50414267,10000032,train", "a-2,50414267,10000032,test")
    with gzip.open(mimic / "mimic-cxr-2.0.0-split.csv.gz", "wt") as file:
        file.write(text)
    with pytest.raises(ValueError, match="1 in train and test") as caught:
        import_mimic_cxr(str(mimic), str(tmp_path / "cxr.jsonl"), views=[])
    assert "10000032" not in str(caught.value)


# Reports and numbers ----------------------------------------------------------------------------------------------


def test_reports():
    sections = report_sections(REPORT)
    assert sections["INDICATION"].startswith("___ year old woman")
    assert sections["FINDINGS"].startswith("The lungs are clear.")
    assert report_text("Lungs clear at 10:30. No ___ effusion.") == "No effusion."  # no headings: all of it
    assert report_text("FINDINGS: \n\nIMPRESSION:  Normal.") == "Normal."
    assert report_text("IMPRESSION: One.\nIMPRESSION: Two.") == "One. Two."
    assert report_text("") == ""


def test_parts_are_shares_of_patients():
    parts = [part_of(pseudonym("toy", str(number))) for number in range(3000)]
    for part, share in (("train", 0.8), ("val", 0.1), ("test", 0.1)):
        assert parts.count(part) / 3000 == pytest.approx(share, abs=0.03)
    assert part_of(pseudonym("toy", "7")) == parts[7]
    assert 0 <= pseudonym("toy", "7") < 2**53
