"""How a file is damaged: some edits of its bytes, which hypothesis draws, and makes fewer where they do harm."""

import re

from hypothesis import strategies as st

FRACTIONS = st.floats(0, 1, exclude_max=True)
NUMBERS = [b"0", b"-1", b"1", b"255", b"65536", b"4294967295", b"99999999999999999999", b"1e308", b"nan", b"inf", b""]

edits = st.lists(
    st.one_of(
        st.tuples(st.just("cut"), FRACTIONS),
        st.tuples(st.just("byte"), FRACTIONS, st.integers(0, 255)),
        st.tuples(st.just("head"), st.integers(0, 127), st.integers(0, 255)),  # where formats keep sizes and offsets
        st.tuples(st.just("run"), FRACTIONS, st.integers(1, 64), st.sampled_from([0, 0xFF, 0x7F, 0x80])),
        st.tuples(st.just("drop"), FRACTIONS, st.integers(1, 64)),
        st.tuples(st.just("again"), FRACTIONS, st.integers(1, 64)),
        st.tuples(st.just("number"), FRACTIONS, st.sampled_from(NUMBERS)),
    ),
    min_size=1,
    max_size=4,
)


def damaged(data: bytes, changes: list[tuple]) -> bytes:
    """The bytes after all edits."""
    for kind, *how in changes:
        data = globals()[f"_{kind}"](data, *how) if data else data
    return data


def _at(data: bytes, fraction: float) -> int:
    return int(fraction * len(data))


def _cut(data: bytes, fraction: float) -> bytes:
    return data[: _at(data, fraction)]


def _byte(data: bytes, fraction: float, value: int) -> bytes:
    place = _at(data, fraction)
    return data[:place] + bytes([value]) + data[place + 1 :]


def _head(data: bytes, place: int, value: int) -> bytes:
    return data[:place] + bytes([value]) + data[place + 1 :]


def _run(data: bytes, fraction: float, length: int, value: int) -> bytes:
    place = _at(data, fraction)
    return data[:place] + bytes([value]) * len(data[place : place + length]) + data[place + length :]


def _drop(data: bytes, fraction: float, length: int) -> bytes:
    place = _at(data, fraction)
    return data[:place] + data[place + length :]


def _again(data: bytes, fraction: float, length: int) -> bytes:
    place = _at(data, fraction)
    return data[: place + length] + data[place:]


def _number(data: bytes, fraction: float, number: bytes) -> bytes:
    """Another number in the place of one that is written in digits."""
    found = list(re.finditer(rb"-?\d+(?:\.\d+)?", data[: 2**16]))
    if not found:
        return data
    old = found[int(fraction * len(found))]
    return data[: old.start()] + number + data[old.end() :]
