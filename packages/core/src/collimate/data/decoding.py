"""Decoders: one for each extension, from a sample's bytes to a value. Values already decoded pass unchanged.

A package adds its own with `register_decoder(decode, "dcm")`, and says in which keys a modality may lie with
`register_modality("audio", "flac", "wav")`. The entry-point group `collimate.decoders` names the modules that do so.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from importlib.metadata import entry_points
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from collimate.data.source import CorruptSample, Sample

IMAGES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff")
SOUNDS = ("flac", "wav", "ogg", "mp3")  # what soundfile reads without system packages
MAX_PIXELS = 89_478_485  # Pillow's own bound, above which it warns of a decompression bomb
MIN_SIDE = 4  # ours: below it there is nothing to see; such files are place holders and tracking pixels
MAX_ASPECT = 50  # ours: rules and banners
MAX_TEXT = 2**20  # ours, in bytes: no caption is longer than a book

LABELS = ("labels.json", "cls")  # several, by name; or the number of the one

Decoder = Callable[[bytes], Any]


class Undecodable(ValueError):
    """A value that cannot be used; `reason` is short and the same for all such values."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason} ({detail})" if detail else reason)
        self.reason, self.detail = reason, detail


def register_decoder(decode: Decoder, *extensions: str) -> None:
    """Have `decode` turn the bytes under these keys into values. It raises `Undecodable` where it cannot."""
    _DECODERS.update(dict.fromkeys(extensions, decode))


def register_check(check: Callable[[bytes], object], *extensions: str) -> None:
    """Have `collimate data verify` try bytes that only a processor reads; `check` raises as that does."""
    _CHECKS.update(dict.fromkeys(extensions, check))


def register_modality(modality: str, *extensions: str) -> None:
    """Say under which keys of a sample a modality lies, the preferred one first; after those that are known already."""
    _MODALITIES[modality] = tuple(dict.fromkeys((*_MODALITIES.get(modality, ()), *extensions)))


def extensions_of(modality: str) -> tuple[str, ...]:
    """The keys under which a modality may lie; its own name where it was never registered."""
    return _MODALITIES.get(modality, (modality,))


def where(sample: Sample) -> str:
    """How reports name a sample."""
    return f"{sample.get('__url__', sample.get('__source__', 'sample'))}: {sample.get('__key__', '?')}"


def value_of(sample: Sample, extensions: Sequence[str]) -> Any:
    """The decoded value under the first of these keys that the sample has.

    Raises:
        CorruptSample: it has none of them, or the bytes cannot be decoded.
    """
    for extension in extensions:
        if extension in sample:
            value = sample[extension]
            try:
                return check(extension, value) if not isinstance(value, bytes) else decode(extension, value)
            except Undecodable as error:
                raise CorruptSample(f"{where(sample)}.{extension}", error.reason, error.detail) from None
    raise missing(sample, extensions)


def keys_of(sample: Sample) -> list[str]:
    """The sample's own keys, without those that say where it comes from."""
    return [key for key in sample if not key.startswith("__")]


def identity_of(sample: Sample, extensions: Sequence[str]) -> int:
    """A number in the range of int64 by which to tell what lies under the first of these keys that the sample has.

    Equal for equal content (the bytes of a file; the values of a picture or array that came decoded), wherever it comes
    from and whatever the sample is called: one picture with several captions has one identity in all of its rows.

    Raises:
        CorruptSample: the sample has none of these keys.
    """
    for extension in extensions:
        if extension in sample:
            return int.from_bytes(blake2b(_content(sample[extension]), digest_size=8).digest(), "little", signed=True)
    raise missing(sample, extensions)


def missing(sample: Sample, extensions: Sequence[str]) -> CorruptSample:
    """What to raise where a sample has none of these keys."""
    return CorruptSample(
        where(sample), f"no {'/'.join(extensions)}", f"it has {', '.join(keys_of(sample)) or 'nothing'}"
    )


def decode(extension: str, data: bytes) -> Any:
    """Decode the bytes under one key; bytes that no decoder knows are returned.

    Raises:
        Undecodable: they are damaged or refused.
    """
    decoder = _DECODERS.get(extension) or _DECODERS.get(extension.rsplit(".", 1)[-1])
    if decoder is None:
        return data
    if not data:
        raise Undecodable("empty file", "0 bytes, expected a whole file")
    return decoder(data)


def check_bytes(extension: str, data: bytes) -> None:
    """Read bytes that have no decoder as their processor would, if a package says how; see `register_check`."""
    if checked := _CHECKS.get(extension):
        checked(data)


def load_decoders() -> None:
    """Have the decoders of all installed packages, whose modules the entry-point group `collimate.decoders` names."""
    for entry in entry_points(group="collimate.decoders"):
        entry.load()


def _content(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, Image.Image | np.ndarray):
        array = np.asarray(value)
        return f"{array.shape} {array.dtype}".encode() + array.tobytes()
    return str(value).encode("utf-8", "surrogatepass")


def check(extension: str, value: Any) -> Any:
    """The rules for a value that came decoded; the same as for bytes."""
    return check_text(value) if extension == "txt" and isinstance(value, str) else value


@contextmanager
def naming(sample: Sample, what: str) -> Iterator[None]:
    """What decoders and processors raise on damaged input, as a corrupt sample with its name."""
    try:
        yield
    except Undecodable as error:
        raise CorruptSample(f"{where(sample)}.{what}", error.reason, error.detail) from None
    except (OSError, SyntaxError, ValueError, EOFError, OverflowError) as error:  # Pillow's choice of errors
        reason = "truncated file" if "truncated" in str(error) else f"undecodable {what}"
        detail = f"{type(error).__name__}: {error}; expected a whole file"
        raise CorruptSample(f"{where(sample)}.{what}", reason, detail) from None


# Decoders -------------------------------------------------------------------------------------------------------


def decode_image(data: bytes) -> Image.Image:
    """A picture whose header was read, whose pixels were not: whoever loads it may first choose a smaller scale.

    Those of TIFF files are read too: what else their damage raises, later, would look like a fault of the program.

    Raises:
        Undecodable: no picture, a damaged one, larger than `MAX_PIXELS`, smaller than `MIN_SIDE`, or longer than
            `MAX_ASPECT`.
    """
    try:
        image = Image.open(io.BytesIO(data))
    except Image.DecompressionBombError as error:
        raise Undecodable("decompression bomb", str(error)) from None
    except UnidentifiedImageError:
        raise Undecodable("not an image", f"it begins with {data[:8]!r}, expected one of {', '.join(IMAGES)}") from None
    except Exception as error:  # decoders of rare formats raise anything on damaged headers
        raise Undecodable("damaged image", str(error)) from None
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise Undecodable("decompression bomb", f"{width} x {height}, at most {MAX_PIXELS} pixels are taken")
    if min(width, height) < MIN_SIDE or max(width, height) > MAX_ASPECT * min(width, height):
        raise Undecodable("absurd image size", f"{width} x {height}")
    if image.format == "TIFF":
        try:
            image.load()
        except Exception as error:
            raise Undecodable("damaged image", f"{type(error).__name__}: {error}") from None
    return image


def decode_text(data: bytes) -> str:
    """A caption.

    Raises:
        Undecodable: not UTF-8, empty, or longer than `MAX_TEXT` bytes. Shorter ones are cut by the tokenizer.
    """
    if len(data) > MAX_TEXT:
        raise Undecodable("text too long", f"{len(data)} bytes, at most {MAX_TEXT} are taken")
    try:
        return check_text(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise Undecodable("text not UTF-8", str(error)) from None


def check_text(text: str) -> str:
    """A caption that is already a string, by the rules of `decode_text`."""
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise Undecodable("text not UTF-8") from None
    if len(text) > MAX_TEXT:
        raise Undecodable("text too long", f"{len(text)} characters, at most {MAX_TEXT} are taken")
    if not text.strip():
        raise Undecodable("empty text", f"{text[:20]!r}, expected words")
    return text


def decode_json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError as error:
        raise Undecodable("damaged JSON", str(error)) from None


def decode_class(data: bytes) -> int:
    try:
        return int(data)
    except ValueError:
        raise Undecodable(
            "class is no whole number", f"{data[:20]!r}, expected the number of a class, from 0"
        ) from None


def decode_array(data: bytes) -> np.ndarray | dict[str, np.ndarray]:
    """An .npy array, or the arrays of an .npz file; no pickled objects."""
    try:
        loaded = np.load(io.BytesIO(data), allow_pickle=False)
        return loaded if isinstance(loaded, np.ndarray) else dict(loaded)
    except Exception as error:  # zip, header and dtype errors alike
        raise Undecodable("damaged array", str(error)) from None


_DECODERS: dict[str, Decoder] = {
    **dict.fromkeys(IMAGES, decode_image),
    "txt": decode_text,
    "json": decode_json,
    "cls": decode_class,
    "npy": decode_array,
    "npz": decode_array,
}
_CHECKS: dict[str, Callable[[bytes], object]] = {}
_MODALITIES: dict[str, tuple[str, ...]] = {
    "image": IMAGES,
    "text": ("txt", "captions.json"),
    "label": ("cls",),
    "labels": LABELS,
}
