"""ECGs from WFDB records: a header with its signals beside it, in any format that wfdb reads.

Of a header, sampling rate, names and units are taken, and nothing else: its comments tell of a patient's age, sex and
diagnoses, its first line may give date and time. Messages name a record by the last part of its path.

Shape legend: C leads, T samples of a lead.
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from collimate.data.decoding import Undecodable
from collimate_medical.ecg import ECG, LEADS, MAX_SAMPLES, MILLIVOLTS, lead_name

SIGNALS = ("dat", "mat")
"""The suffixes of signal files beside a header."""


def read_wfdb(path: str | PathLike[str], first: int = 0, last: int | None = None) -> ECG:
    """The leads of a record in the order of its header, in millivolts; NaN where the file marks a number as invalid.

    Channels whose unit is no voltage, such as blood pressure or breathing, are left out.

    Args:
        path: of the record, with or without `.hea`.
        first, last: the samples to read, from `first` to before `last`; to the end if None.

    Raises:
        Undecodable: the header or a signal file is damaged or cut short, there is no lead, its unit is unknown, or it
            is larger than `MAX_SAMPLES`.
        FileNotFoundError: there is no header, or no signal file beside it.
    """
    import wfdb

    record = Path(path)
    record = record.with_suffix("") if record.suffix == ".hea" else record
    if not record.with_name(record.name + ".hea").is_file():
        raise FileNotFoundError(f"There is no header {record.name}.hea.")
    try:
        header: Any = wfdb.rdheader(str(record))
    except Exception as error:  # whatever a damaged line makes the parser raise; it may quote it
        raise Undecodable("damaged WFDB header", f"{record.name}.hea: {type(error).__name__}") from None
    _check(header, record, first, last)
    try:
        signal, fields = wfdb.rdsamp(str(record), sampfrom=first, sampto=last)
    except FileNotFoundError:
        raise FileNotFoundError(f"{record.name}.hea names a signal file that is not beside it.") from None
    except Exception as error:
        raise Undecodable(
            "truncated or damaged WFDB signal",
            f"{record.name}: {type(error).__name__}: {error}; expected as many numbers as the header says",
        ) from None
    return _ecg(np.asarray(signal), fields, record.name)


def decode_wfdb(header: bytes, signal: bytes) -> ECG:
    """The record of a header and its one signal file, both as bytes.

    Raises:
        Undecodable: as for `read_wfdb`, or the header names several signal files, or one in another folder.
    """
    lines = [line.split() for line in header.decode("utf-8", "replace").splitlines() if line and line[0] != "#"]
    names = {line[0] for line in lines[1:] if line}
    if len(names) != 1 or not lines[0]:
        raise Undecodable("damaged WFDB header", f"it names {len(names)} signal files, where one is given")
    name, record = names.pop(), lines[0][0].split("/")[0]
    if any(Path(each).name != each for each in (name, record)):
        raise Undecodable("damaged WFDB header", "its record or signal file lies in another folder")
    with TemporaryDirectory() as folder:  # wfdb reads paths alone
        Path(folder, f"{record}.hea").write_bytes(header)
        Path(folder, name).write_bytes(signal)
        return read_wfdb(Path(folder, record))


def _check(header: Any, record: Path, first: int, last: int | None) -> None:
    if not header.n_sig:
        raise Undecodable("no lead in the WFDB record", f"{record.name}.hea lists no signal")
    if hasattr(header, "seg_name"):
        raise Undecodable(
            "several segments in the WFDB record", f"{record.name}.hea: write the one you mean to a record"
        )
    if not header.fs or not header.sig_name or not header.units:
        raise Undecodable("damaged WFDB header", f"{record.name}.hea lacks a rate, names or units")
    if not 0 <= first < (last or first + 1):
        raise ValueError(f"Samples are read from `first` to before `last`; got {first} and {last}.")
    length = (last or header.sig_len or 0) - first
    if length * header.n_sig > MAX_SAMPLES:
        raise Undecodable(
            "ECG too long", f"{record.name}: {length} samples of {header.n_sig} signals: read it in pieces, by `last`"
        )
    if header.sig_len is not None and max(first + 1, last or 0) > header.sig_len:
        raise ValueError(f"{record.name} has {header.sig_len} samples; {first} to {last} were asked for.")


def _ecg(signal: np.ndarray, fields: dict[str, Any], name: str) -> ECG:
    """The channels that are voltages, in millivolts."""
    units = [unit.strip().lower() for unit in fields["units"]]
    names = [lead_name(each or f"signal {place}") for place, each in enumerate(fields["sig_name"])]
    leads = [place for place, unit in enumerate(units) if unit in MILLIVOLTS]
    if not leads:
        raise Undecodable(
            "no lead in the WFDB record", f"{name}.hea: units are {', '.join(fields['units'])}, none of them a voltage"
        )
    factors = np.array([MILLIVOLTS[units[place]] for place in leads])
    values = (signal[:, leads] * factors).T.astype(np.float32)
    return ECG(np.ascontiguousarray(values), float(fields["fs"]), _apart([names[place] for place in leads]))


def _apart(names: list[str]) -> tuple[str, ...]:
    """Names that are no standard lead's, such as ECG, may be given twice: from the second on they get a number."""
    counts = [names[: place + 1].count(name) for place, name in enumerate(names)]
    return tuple(
        f"{name} ({count})" if count > 1 and name not in LEADS else name
        for name, count in zip(names, counts, strict=True)
    )
