"""Collimate: encoders, losses, data, training and evaluation for multimodal contrastive pre-training.

Nothing heavy is imported here: `import collimate` costs milliseconds.
"""

from __future__ import annotations

from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collimate.checkpoints import load
    from collimate.encoding import Encoding

__version__ = _version("collimate")
__all__ = ["Encoding", "__version__", "load"]


def __getattr__(name: str) -> Any:
    if name == "load":
        from collimate.checkpoints import load

        return load
    if name == "Encoding":
        from collimate.encoding import Encoding

        return Encoding
    raise AttributeError(f"module 'collimate' has no attribute {name!r}")
