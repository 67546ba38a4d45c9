"""DICOM pictures against pydicom's own steps, WFDB records against wfdb, ECGs against MoRE's preparation."""

import numpy as np
import pytest
import torch

from collimate_medical.dicom import apply_window, modality_values, open_dicom, read_dicom, stored_values, windowed
from collimate_medical.ecg import ECG, LEADS, with_leads
from collimate_medical.ecg_augmentation import permuted, warped
from collimate_medical.processing import ECGProcessor, XRayProcessor, without_baseline
from collimate_medical.wfdb_records import read_wfdb


def close(found, wanted, rule, name):
    rule = {"atol": 0.0} if rule == "exact" else {k: v for k, v in rule.items() if k in ("atol", "rtol", "equal_nan")}
    found = torch.as_tensor(np.ascontiguousarray(found)).double()
    torch.testing.assert_close(found, wanted.double(), **{"rtol": 0.0, **rule}, msg=lambda m: f"{name}: {m}")


def test_dicom(golden):
    golden_set = golden("dicom")
    rules = golden_set.config["tolerance"]
    for case, settings in golden_set.cases.items():
        path = golden_set.folder / settings["file"]
        dataset = open_dicom(path)
        raw = stored_values(dataset)
        modality = modality_values(raw, dataset)
        found = {"raw": raw, "modality": modality, "voi_lut": windowed(modality, dataset)}
        found["display01"] = read_dicom(path.read_bytes())
        for number in range(settings["windows"]):
            found[f"windowed_{number}"] = apply_window(modality, dataset, number)
        for number in range(settings["voi_luts"]):
            found[f"voilut_{number}"] = windowed(modality, dataset, number)
        for output in settings["outputs"]:
            rule = rules.get(output) or rules[output.rpartition("_")[0]]
            close(found[output], golden_set.expected[f"{case}.{output}"], rule, f"{case}.{output}")


def test_wfdb(golden):
    golden_set = golden("wfdb")
    for case, settings in golden_set.cases.items():
        read = settings["read"]
        ecg = read_wfdb(golden_set.folder / settings["header"], read["sampfrom"], read["sampto"])
        rows = list(range(len(ecg.leads))) if read["channels"] is None else read["channels"]
        assert ecg.rate == settings["fs"]
        assert [ecg.leads[row].lower() for row in rows] == [name.lower() for name in settings["lead_names"]]
        wanted = golden_set.expected[f"{case}.signal"].T * torch.tensor(settings["to_millivolt"])[:, None]
        close(ecg.signal[rows], wanted, golden_set.config["tolerance"]["signal"], case)
        assert [int((~ecg.valid[row]).sum()) for row in rows] == settings["nan_samples_per_lead"]
        names = [settings["lead_names"][lead] if isinstance(lead, int) else lead for lead in settings["all_nan_leads"]]
        assert {name.lower() for name in names} <= {name.lower() for name in ecg.dead_leads}
        standard = {name.lower(): place for place, name in enumerate(settings["lead_names"])}
        if set(map(str.lower, LEADS)) <= standard.keys():
            order = [standard[name.lower()] for name in golden_set.config["canonical_leads"]]
            assert with_leads(ecg).leads == tuple(golden_set.config["canonical_leads"])
            close(with_leads(ecg).signal, wanted[order], golden_set.config["tolerance"]["signal"], f"{case} in order")


def test_more_ecg(golden):
    golden_set = golden("more/preprocess")
    settings = golden_set.config["ecg"]
    scale = {"rate": settings["target_hz"], "seconds": settings["samples_out"] / settings["target_hz"]}
    for name in golden_set.config["ecgs"]:
        ecg = ECG(golden_set.inputs[f"ecg_{name}"].numpy().T, settings["source_hz"])
        rule = golden_set.config["tolerance"]["ecg"]
        plain = ECGProcessor(**scale, remove_baseline=False, scale="none", official=True)(ecg).numpy()
        removed = without_baseline(plain, settings["target_hz"])
        close(removed, golden_set.expected[f"baseline_removed_{name}"], rule, f"baseline_removed_{name}")
        close(ECGProcessor(**scale, official=True)(ecg), golden_set.expected[f"ecg_out_{name}"], rule, f"ecg_{name}")


def test_more_xray(golden):
    golden_set = golden("more/preprocess")
    settings, rule = golden_set.config["image"], golden_set.config["tolerance"]["image"]
    processor = XRayProcessor(settings["size"][0], settings["mean"], settings["std"], equalize=True)
    for name in golden_set.config["images"]:
        pixels = processor(golden_set.inputs[f"img_{name}"].numpy())
        found, wanted = processor.finish(pixels[None])[0, :1], golden_set.expected[f"xray_{name}"]
        off = (found - wanted).abs()
        assert (off > rule["atol"]).double().mean() <= rule["allowed_outliers_fraction"], name
        assert off.max() <= rule["outlier_atol"], name


@pytest.mark.parametrize("name", ["warp", "perm"])
def test_more_augmentation(golden, name):
    golden_set = golden("more/preprocess")
    change, draws = {"warp": (warped, "warp_segments"), "perm": (permuted, "perm_order")}[name]
    found = change(golden_set.inputs[f"{name}_in"], golden_set.inputs[draws])
    close(found, golden_set.expected[f"{name}_out"], golden_set.config["tolerance"]["augmentation"], name)
