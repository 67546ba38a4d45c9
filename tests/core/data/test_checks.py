"""Bytes that only processors read: packages say how they are tried, and in which module they say so."""

from types import SimpleNamespace

import pytest

from collimate.data import commands, decoding
from collimate.data.decoding import Undecodable, check_bytes, load_decoders, register_check


def refuse(data: bytes) -> None:
    if data != b"whole":
        raise Undecodable("damaged sound", f"{len(data)} bytes, expected 5")


@pytest.fixture(autouse=True)
def checks(monkeypatch):
    monkeypatch.setattr(decoding, "_CHECKS", {})
    register_check(refuse, "wav", "flac")


def test_bytes_are_tried_by_their_key():
    check_bytes("wav", b"whole")
    check_bytes("unheard.of", b"")
    with pytest.raises(Undecodable, match="2 bytes"):
        check_bytes("flac", b"cu")


def test_verify_lists_what_a_check_refuses(monkeypatch):
    samples = [{"__key__": str(number), "wav": data} for number, data in enumerate((b"whole", b"cu"))]
    monkeypatch.setattr(commands, "_source", SimpleNamespace(read=samples.__getitem__))
    ((where, reason, detail),) = commands._check([0, 1])
    assert where.endswith(": 1.wav")
    assert (reason, detail) == ("damaged sound", "2 bytes, expected 5")


def test_the_modules_of_decoders_are_loaded(monkeypatch):
    loaded = []
    entries = [SimpleNamespace(load=lambda name=name: loaded.append(name)) for name in ("sounds", "scans")]
    monkeypatch.setattr(decoding, "entry_points", lambda group: entries if group == "collimate.decoders" else [])
    load_decoders()
    assert loaded == ["sounds", "scans"]
