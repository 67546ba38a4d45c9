"""What evaluation knows of a modality beyond how it is encoded: how reports show a sample, what it is asked by.

Pictures are known here. A package says it of its own:

    register_evaluation("audio", Manner(show=show_sound, window=sound_window, templates="sound"))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collimate.data.source import Sample
    from collimate.processing.image import RawImage


@dataclass(frozen=True)
class Exhibit:
    """What a report shows of a sample.

    Attributes:
        picture: a photograph, or a drawing of what is none.
        sound: a whole file, to be played, or None.
        sound_type: of the file, as browsers call it.
    """

    picture: RawImage
    sound: bytes | None = None
    sound_type: str = "audio/flac"


@dataclass(frozen=True)
class Manner:
    """How a modality is evaluated.

    Attributes:
        show: a sample's raw value to what reports show of it; None where there is nothing to see.
        window: `(raw, processor, number, count)` to the raw value of window `number` of `count`, spread evenly over a
            sample that is longer than the processor's input, the first at its begin and the last at its end; a shorter
            sample as it is. None where samples have no length.
        templates: the name of the templates of zero-shot classification that are used unless others are asked for.
        template_sets: name -> templates.
        spaced_names: whether underscores in class names, as data sets of sounds have them, are read as spaces.
        ranks: whether the field reports, of a classification, the ranks of the true classes beside accuracies.
    """

    show: Callable[[Any], Exhibit] | None = None
    window: Callable[[Any, Any, int, int], Any] | None = None
    templates: str = "name"
    template_sets: Mapping[str, Sequence[str]] = field(default_factory=dict)
    spaced_names: bool = False
    ranks: bool = False


_MANNERS: dict[str, Manner] = {"image": Manner(show=Exhibit, templates="imagenet")}


def register_evaluation(modality: str, manner: Manner) -> None:
    """Say how a modality is evaluated."""
    _MANNERS[modality] = manner


def manner_of(modality: str) -> Manner:
    """How a modality is evaluated; by what needs no knowledge of it where nobody said."""
    return _MANNERS.get(modality, Manner())


def registered_templates() -> dict[str, list[str]]:
    """The sets of templates that packages have brought, by name."""
    return {name: list(forms) for manner in _MANNERS.values() for name, forms in manner.template_sets.items()}


def exhibit_in(sample: Sample, modality: str) -> Exhibit | None:
    """What reports show of a sample, or None where it has nothing to show."""
    from collimate.data.decoding import extensions_of

    show = manner_of(modality).show
    raw = next((sample[key] for key in extensions_of(modality) if key in sample), None)
    return None if show is None or raw is None else show(raw)
