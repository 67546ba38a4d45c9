"""WFDB records as a source of samples: `wfdb:<folder, table or shards>`.

A record is a header and its signals, several files, of which samples get one value: `ecg.npz` (`encode_ecg`). Whatever
reads that source, `collimate data` too, sees plain samples. Header comments, which tell of the patient, are not read.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from collimate.data import open_source
from collimate.data.decoding import Undecodable, where
from collimate.data.source import CorruptSample, Order, Sample, Source
from collimate.data.tables import TableSource
from collimate_medical.reading import encode_ecg
from collimate_medical.wfdb_records import SIGNALS, decode_wfdb, read_wfdb


def open_records(spec: str, **options: Any) -> Source:
    """The source that `wfdb:<spec>` names.

    Args:
        spec: a folder with records at any depth; or any other source whose samples have a header: a table with
            paths of `.hea` files, or shards with `hea` and `dat` keys.
        options: of the source.

    Raises:
        FileNotFoundError: there is no record in the folder.
    """
    if Path(spec).is_dir() and not any(Path(spec).glob("*.tar")):
        return RecordFolder(spec)
    return RecordSource(open_source(spec, **options))


class RecordFolder(Source):
    """The records of a folder, in the order of their paths; the key is the path within it, without suffix.

    Raises:
        FileNotFoundError: there is none.
    """

    def __init__(self, path: str | Path) -> None:
        self.path, self.name = Path(path), str(path)
        self.records = sorted(each.with_suffix("") for each in self.path.rglob("*.hea"))
        if not self.records:
            raise FileNotFoundError(f"There is no .hea file in {path}: name a folder of WFDB records.")

    def __len__(self) -> int:
        return len(self.records)

    def read(self, index: int) -> Sample:
        record = self.records[index]
        sample: Sample = {"__key__": record.relative_to(self.path).as_posix(), "__source__": self.name}
        return sample | _record(sample, lambda: read_wfdb(record))


class RecordSource(Source):
    """A source whose samples get an `ecg.npz` in the place of a WFDB header and its signals."""

    def __init__(self, source: Source) -> None:
        self.source, self.name = source, source.name
        if (names := getattr(source, "class_names", None)) is not None:
            self.class_names = names

    def __len__(self) -> int:
        return len(self.source)

    def read(self, index: int) -> Sample:
        sample = self.source.read(index)
        if "hea" not in sample:
            return sample
        header = sample["hea"]
        rest = {key: value for key, value in sample.items() if key not in ("hea", *SIGNALS)}
        signal = next((sample[suffix] for suffix in SIGNALS if suffix in sample), None)
        if signal is not None:
            return rest | _record(sample, lambda: decode_wfdb(header, signal))
        if not isinstance(self.source, TableSource):
            raise CorruptSample(where(sample), "no signal beside the WFDB header", f"{' or '.join(SIGNALS)} is needed")
        path = self.source.path.parent / str(self.source.row(index)[self.source.columns["file"]])
        return rest | _record(sample, lambda: read_wfdb(path))

    def peek(self, index: int, keys: Sequence[str]) -> Sample:
        if "ecg.npz" in keys:
            return super().peek(index, keys)
        return self.source.peek(index, keys)

    def order(self, seed: int, epoch: int) -> Order:
        return self.source.order(seed, epoch)


def _record(sample: Sample, read: Any) -> Sample:
    try:
        return {"ecg.npz": encode_ecg(read())}
    except Undecodable as error:
        raise CorruptSample(where(sample), error.reason, error.detail) from None
    except FileNotFoundError as error:
        raise CorruptSample(where(sample), "missing file", str(error)) from None
