"""What the doctor finds: each kind of trouble is made, and told with what to do."""

import sys
from types import SimpleNamespace

import pytest

from collimate import doctor


def rows(check) -> dict[str, tuple]:
    return {what: (good, found, remedy) for good, what, found, remedy in check()}


def told(capsys) -> str:
    with pytest.raises(SystemExit) as stopped:
        doctor.doctor()
    assert stopped.value.code == 1
    return capsys.readouterr().out


def test_a_requirement_that_is_absent_or_too_old_is_named(monkeypatch):
    package = SimpleNamespace(
        metadata={"Name": "collimate-mine"},
        version="1.0",
        requires=["nowhere-to-be-found>=2", "numpy<1", "torch>=2", "nothing; sys_platform == 'never'"],
    )
    monkeypatch.setattr(doctor, "_collimate", lambda: [package])
    good, found, remedy = rows(doctor._packages)["collimate-mine"]
    assert good is False
    assert "nowhere-to-be-found is missing" in found
    assert "is not <1" in found
    assert "torch" not in found
    assert "uv sync" in remedy


def test_an_extra_that_is_absent_is_no_failure(monkeypatch):
    class Metadata(dict):
        def get_all(self, key: str) -> list[str]:
            return ["fast"]

    package = SimpleNamespace(
        metadata=Metadata(Name="collimate-mine"), requires=["numpy", "nowhere-to-be-found; extra == 'fast'"]
    )
    monkeypatch.setattr(doctor, "_collimate", lambda: [package])
    good, found, remedy = rows(doctor._optional)["collimate-mine[fast]"]
    assert good is None
    assert found == "nowhere-to-be-found is missing"
    assert "pip install 'collimate-mine[fast]'" in remedy


def test_a_format_that_fails_is_a_failure(monkeypatch, capsys):
    def check() -> str:
        raise RuntimeError("no codec")

    entry = SimpleNamespace(name="films", load=lambda: check)
    monkeypatch.setattr(doctor, "entry_points", lambda group: [entry])
    assert "no codec" in told(capsys)


def test_a_full_disk_and_an_old_python_are_told(monkeypatch, capsys):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=2**30, total=2**20))
    monkeypatch.setattr(sys, "version_info", (3, 10, 0))
    text = " ".join(told(capsys).split())
    assert "checkpoints may not fit" in text
    assert "--shm-size" in text
    assert "3.11" in text


def test_every_package_has_its_formats_tried():
    found = rows(doctor._formats)
    assert {"sounds (FLAC)", "films (MP4)", "X-rays (DICOM)"} <= found.keys()
    assert all(good for good, _, _ in found.values()), found
