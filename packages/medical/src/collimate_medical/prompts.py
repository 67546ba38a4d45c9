"""Texts that ask for findings: of chest X-rays, each finding and its absence, and of ECGs, PTB-XL's super-classes.

Worded here; the published sets of GLoRIA and others are given as files (`collimate.evaluation.prompts`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml


class FindingTexts(NamedTuple):
    """How a report says that a finding is there, and that it is not; equally many of both, or of these none."""

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


WORLD_FINDINGS: Mapping[str, tuple[str, ...]] = {
    "world-xray": ("enlarged heart", "lung opacity", "pleural effusion", "pneumothorax"),
    "world-ecg": ("high voltage", "tachycardia", "wide qrs", "st elevation", "t wave inversion"),
}
"""Those of the synthetic patients (`world-patients`), by set."""

NO_FINDING = FindingTexts(("no acute cardiopulmonary process",), ("abnormal chest radiograph",))
"""Ours: "No Finding" of CheXpert's and MIMIC's labels has no words that could be denied."""


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
        raise ValueError(f"The template {bad[0]!r} has no {{}} where the finding belongs: write one.")
    return {
        label: FindingTexts(*(tuple(form.format(words) for form in forms) for forms in zip(*templates, strict=True)))
        for label, words in findings.items()
    }


def prompt_set(name: str) -> dict[str, FindingTexts]:
    """A named set of texts.

    - `chexpert`: the five labels of the competition, each against its denial;
    - `mimic`: the fourteen labels of CheXpert and MIMIC-CXR, likewise;
    - `ptb-xl`: the five super-classes of ECGs, by texts of presence alone;
    - `world-xray`, `world-ecg`: the findings of the synthetic patients.

    Raises:
        ValueError: no such set.
    """
    if name == "chexpert":
        return finding_texts()
    if name == "mimic":
        return {**finding_texts(list(CHEST_FINDINGS)), "No Finding": NO_FINDING}
    if name == "ptb-xl":
        return {label: FindingTexts(texts, ()) for label, texts in ECG_CLASSES.items()}
    if name in WORLD_FINDINGS:
        return finding_texts({finding: finding for finding in WORLD_FINDINGS[name]}, TEMPLATE_PAIRS[:2])
    raise ValueError(f"{name!r} is no set of texts; the sets are {', '.join(PROMPT_SETS)}.")


PROMPT_SETS = ("chexpert", "mimic", "ptb-xl", *WORLD_FINDINGS)


def read_prompts(given: str | Sequence[str] | Mapping[str, object]) -> dict[str, FindingTexts]:
    """Texts of findings, however they are given.

    Args:
        given: a name of `PROMPT_SETS`; a JSON or YAML file with a mapping; findings, of whose names the texts are made;
            or a mapping: label -> its words, a list of texts of presence, or `{"present": [...], "absent": [...]}`.

    Raises:
        ValueError: it is none of those.
        FileNotFoundError: it names neither a set nor a file.
    """
    if isinstance(given, str):
        if given in PROMPT_SETS:
            return prompt_set(given)
        path = Path(given)
        if not path.is_file():
            raise FileNotFoundError(f"{given!r} is neither a file nor one of the sets {', '.join(PROMPT_SETS)}.")
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    if isinstance(given, Mapping):
        return {str(label): _texts(str(label), value) for label, value in given.items()}
    if not isinstance(given, Sequence) or not given or not all(isinstance(each, str) for each in given):
        raise ValueError(f"Findings are names, or a mapping of names to texts; got {str(given)[:60]!r}.")
    return finding_texts({finding: CHEST_FINDINGS.get(finding, finding) for finding in given})


def _texts(label: str, value: object) -> FindingTexts:
    """The texts of one finding of a mapping."""
    if isinstance(value, str):
        return finding_texts({label: value})[label]
    sides = value if isinstance(value, Mapping) else {"present": value, "absent": []}
    if sides.keys() == {"present", "absent"} and all(
        isinstance(side, list) and all(isinstance(text, str) for text in side) for side in sides.values()
    ):
        present, absent = tuple(sides["present"]), tuple(sides["absent"])
        if present and len(absent) in (0, len(present)):
            return FindingTexts(present, absent)
    raise ValueError(
        f"{label!r}: its words, a list of texts, or `present` and `absent` with equally many of both are expected; got "
        f"{str(value)[:60]!r}."
    )
