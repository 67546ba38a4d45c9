"""Prompts of zero-shot classification: class names put into templates, or full texts for each class.

What may be given is read from a JSON or YAML file:

- a list: class names, or templates;
- a mapping with `classes` and, if wanted, `templates`, each a list;
- a mapping class -> list of full texts, which need no template (Pratt et al. 2023, arXiv 2209.03320);
- any mapping name -> one of these, of which `file.json#name` takes one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from collimate.evaluation.modalities import registered_templates

Prompts = dict[str, list[str]]
"""class -> its texts, in the order of the class numbers."""

TEMPLATE_SETS = ("imagenet", "imagenet7", "photo", "name")
"""OpenAI's 80 templates of ImageNet; 7 of them; "a photo of a {}."; the bare name. Packages bring further sets, for
their modalities (`collimate.evaluation.modalities`)."""


def prompts(
    classes: str | Sequence[str] | Mapping[str, Sequence[str]] | None,
    templates: str | Sequence[str] = "imagenet",
    known: Sequence[str] | None = None,
    spaced: bool = False,
) -> Prompts:
    """The texts of each class.

    Args:
        classes: names, or a file, or class -> full texts; `known` if None.
        templates: the name of a set (`TEMPLATE_SETS`), a file, or templates, in which `{}` or `{c}` is the name.
        known: the class names of the data, in the order of their numbers. Full texts are put into this order.
        spaced: whether the underscores of a name become spaces in its texts.

    Raises:
        ValueError: no classes are known, a class has no text, or full texts miss a class.
        FileNotFoundError: there is no such file.
    """
    given: Any = _read(classes) if isinstance(classes, str) else classes
    if isinstance(given, Mapping) and "classes" in given:
        templates = given.get("templates", templates)
        given = given["classes"]
    if given is None:
        given = known
    if not given:
        raise ValueError("The data do not know their class names (no classes.json): name them by `classes`.")
    if not isinstance(given, Mapping):
        forms = template_list(templates)
        return {name: [_filled(form, name, spaced) for form in forms] for name in map(str, given)}
    if empty := [name for name, texts in given.items() if isinstance(texts, str) or not texts]:
        raise ValueError(f"Each class needs a list of texts; {empty[:3]} have none.")
    if known is not None and set(known) <= set(given):
        return {name: list(given[name]) for name in known}
    if known is not None and len(given) != len(known):
        raise ValueError(f"There are texts for {len(given)} classes, and {len(known)} classes in the data.")
    return {str(name): list(texts) for name, texts in given.items()}


def template_list(templates: str | Sequence[str]) -> list[str]:
    """Templates by the name of a set, from a file, or as they are.

    Raises:
        ValueError: one has no place for the name.
        FileNotFoundError: it is no set's name, and there is no such file.
    """
    found: Any = templates
    if isinstance(templates, str):
        sets = (*TEMPLATE_SETS, *registered_templates())
        found = _named(templates) if templates in sets else [templates]
        if templates not in sets and "{" not in templates:
            found = _read(templates)
            found = found["templates"] if isinstance(found, Mapping) else found
    for form in found:
        if "{}" not in form and "{c}" not in form:
            raise ValueError(
                f"The template {form!r} has no {{}} where the class name belongs: write one, as in 'a {{}}.'."
            )
    return list(found)


def _filled(form: str, name: str, spaced: bool) -> str:
    return form.replace("{c}", "{}").replace("{}", name.replace("_", " ") if spaced else name)


def _named(name: str) -> list[str]:
    if name in (brought := registered_templates()):
        return brought[name]
    from open_clip import OPENAI_IMAGENET_TEMPLATES, SIMPLE_IMAGENET_TEMPLATES  # slow to import

    forms = {
        "imagenet": OPENAI_IMAGENET_TEMPLATES,
        "imagenet7": SIMPLE_IMAGENET_TEMPLATES,
        "photo": ["a photo of a {}.".format],
        "name": ["{}".format],
    }[name]
    return [form("{}") for form in forms]


def _read(spec: str) -> Any:
    path, _, entry = spec.partition("#")
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"There is no file {path!r}. Template sets: {', '.join((*TEMPLATE_SETS, *registered_templates()))}; a "
            "template needs {}."
        )
    text = Path(path).read_text(encoding="utf-8")
    try:
        found = json.loads(text) if path.endswith(".json") else yaml.safe_load(text)
    except (json.JSONDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is neither JSON nor YAML: {error}") from error
    if entry:
        if not isinstance(found, Mapping) or entry not in found:
            raise ValueError(f"{path} has no entry {entry!r}.")
        found = found[entry]
    if not isinstance(found, list | Mapping):
        raise ValueError(f"{path} holds a {type(found).__name__}; a list or a mapping is needed.")
    return found
