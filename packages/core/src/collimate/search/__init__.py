"""One space from models that were trained apart, and search in it: any modality by any other.

What needs torch is imported when it is first used, so that the verbs' help answers at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collimate.search.hit import Hit
    from collimate.search.index import SearchIndex, write_index
    from collimate.search.retrieval import evaluate_between_models
    from collimate.search.searcher import Searcher, open_searcher
    from collimate.search.server import serve
    from collimate.search.space import NotOneSpace, Space, open_space

__all__ = [
    "Hit",
    "NotOneSpace",
    "SearchIndex",
    "Searcher",
    "Space",
    "evaluate_between_models",
    "open_searcher",
    "open_space",
    "serve",
    "write_index",
]

_HOMES = {
    "hit": ("Hit",),
    "index": ("SearchIndex", "write_index"),
    "retrieval": ("evaluate_between_models",),
    "searcher": ("Searcher", "open_searcher"),
    "server": ("serve",),
    "space": ("NotOneSpace", "Space", "open_space"),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"collimate.search.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
