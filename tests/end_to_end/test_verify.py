"""`collimate data verify` reads what any installed package can read: sounds, films, scans and points too."""

import io
import tarfile
from pathlib import Path

import pytest

from collimate.cli import main

from ..fuzz.readers import READERS

KEYS = {
    "flac": "flac",
    "mp4": "mp4",
    "dicom": "dcm",
    "dicom waveform": "ecg.dcm",
    "ply": "ply",
    "sweep.npz": "sweep.npz",
}


def shard(path: Path, share: float) -> Path:
    """A sample of each kind, of whose file this share is there."""
    with tarfile.open(path, "w") as tar:
        for number, (name, key) in enumerate(KEYS.items()):
            data = READERS[name][0]()
            data = data[: round(share * len(data))]
            entry = tarfile.TarInfo(f"{number}.{key}")
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return path


def test_whole_files_of_every_modality_pass(tmp_path: Path, capsys):
    main(["data", "verify", "--data", str(shard(tmp_path / "a.tar", 1.0)), "--workers", "1"])
    assert f"{len(KEYS)} samples checked: 0 are corrupt" in capsys.readouterr().out


def test_files_cut_short_of_every_modality_are_listed(tmp_path: Path, capsys):
    with pytest.raises(SystemExit) as end:
        main(["data", "verify", "--data", str(shard(tmp_path / "a.tar", 0.4)), "--workers", "1"])
    assert end.value.code == 1
    out = " ".join(capsys.readouterr().out.split())
    for number, key in enumerate(KEYS.values()):
        assert f"{number}.{key}: " in out, out
    assert f"{len(KEYS)} are corrupt" in out
    assert "Make them anew, or leave them out" in out
