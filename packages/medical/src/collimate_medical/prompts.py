"""Texts that ask for findings: of chest X-rays, each finding and its absence, and of ECGs, PTB-XL's super-classes.

Worded here; the published sets of GLoRIA and others are given as files (`collimate.evaluation.prompts`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple


class FindingTexts(NamedTuple):
    """How a report says that a finding is there, and how it says that it is not; equally many of both."""

    present: tuple[str, ...]
    absent: tuple[str, ...]


TEMPLATE_PAIRS = (
    ("{}", "no {}"),
    ("There is {}.", "There is no {}."),
    ("The radiograph shows {}.", "The radiograph does not show {}."),
)
"""The first is CheXzero's (Tiu et al. 2022, Nature Biomedical Engineering 6, 1399)."""

CHEST_FINDINGS: Mapping[str, str] = {
    "Atelectasis": "atelectasis",
    "Cardiomegaly": "cardiomegaly",
    "Consolidation": "consolidation",
    "Edema": "pulmonary edema",
    "Enlarged Cardiomediastinum": "enlarged mediastinum",
    "Fracture": "rib fracture",
    "Lung Lesion": "lung nodule or mass",
    "Lung Opacity": "lung opacity",
    "Pleural Effusion": "pleural effusion",
    "Pleural Other": "pleural thickening",
    "Pneumonia": "pneumonia",
    "Pneumothorax": "pneumothorax",
    "Support Devices": "support device",
}
"""The labels of CheXpert and MIMIC-CXR, by name, as their orders differ; "No Finding" is none. And their words."""

COMPETITION = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
"""The five labels over which CheXpert's macro average runs."""

ECG_CLASSES: Mapping[str, tuple[str, ...]] = {
    "NORM": ("normal ecg", "sinus rhythm without abnormal findings"),
    "MI": ("myocardial infarction", "pathological q waves after an infarction"),
    "STTC": ("st segment or t wave changes", "repolarization abnormality"),
    "CD": ("conduction disturbance", "bundle branch block or av block"),
    "HYP": ("ventricular hypertrophy", "high qrs voltage of an enlarged ventricle"),
}
"""PTB-XL's super-classes, several of which one ECG may have."""


def finding_texts(
    findings: Mapping[str, str] | Sequence[str] = COMPETITION,
    templates: Sequence[tuple[str, str]] = TEMPLATE_PAIRS[:1],
) -> dict[str, FindingTexts]:
    """The texts of each finding, by its label.

    Args:
        findings: label -> its words, or labels of `CHEST_FINDINGS`.
        templates: pairs of presence and absence, in which `{}` stands for the words.

    Raises:
        ValueError: a label has no words, or a template has no `{}`.
    """
    if not isinstance(findings, Mapping):
        if unknown := [label for label in findings if label not in CHEST_FINDINGS]:
            raise ValueError(f"{unknown[0]!r} is none of {', '.join(CHEST_FINDINGS)}: give label -> words.")
        findings = {label: CHEST_FINDINGS[label] for label in findings}
    if bad := [form for pair in templates for form in pair if "{}" not in form]:
        raise ValueError(f"The template {bad[0]!r} has no {{}} where the finding belongs.")
    return {
        label: FindingTexts(*(tuple(form.format(words) for form in forms) for forms in zip(*templates, strict=True)))
        for label, words in findings.items()
    }
