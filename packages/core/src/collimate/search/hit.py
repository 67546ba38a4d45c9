"""What a search finds; nothing here imports torch, so that the verbs' help answers at once."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Hit:
    """One sample that was found.

    Attributes:
        row: its number in the index.
        score: the cosine with the query.
        modality: of which it is.
        key: its name in its data set.
        source: the data set.
        place: its place in that.
        caption: its first, or the name of its class; empty where it has neither.
    """

    row: int
    score: float
    modality: str
    key: str
    source: str
    place: int
    caption: str
