"""X-rays with the ECGs of the same patients as one line of text: `paired:<X-rays>?ecgs=<ECGs>`.

    paired:mimic_cxr.jsonl?split=train&ecgs=wfdb:mimic_ecg.jsonl

Both are tables as the importers of MIMIC write them, whose rows say `patient` and `when`. MIMIC shifts the dates of a
patient in all of its modules alike, so that days between two studies are those that really passed.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

from collimate.data import Source, open_source
from collimate_medical.pairing import WINDOW_DAYS, PairedSource, Study, pair_studies


def open_pairs(
    spec: str,
    ecgs: str,
    window_days: float = WINDOW_DAYS,
    policy: Literal["nearest", "all"] = "nearest",
    **options: Any,
) -> PairedSource:
    """The source that `paired:<spec>` names: X-rays and ECGs of one patient, taken within some days of each other.

    Args:
        spec: of the X-rays, as `open_source` takes it.
        ecgs: of the ECGs.
        window_days, policy: as for `pair_studies`.
        options: of the X-rays' source, such as `split=train`. The split of the ECGs does not count: patients are split
            by their X-rays.

    Raises:
        ValueError: a sample does not say its patient, or when it was taken; or there are no pairs.
    """
    xrays, others = open_source(spec, **options), open_source(ecgs)
    studies = studies_of(xrays)
    pairs = pair_studies(studies, studies_of(others), window_days, policy)
    return PairedSource(xrays, others, pairs, [study.patient for study in studies])


def studies_of(source: Source) -> list[Study]:
    """Whose each sample is, and when it was taken, as its `json` says.

    Raises:
        ValueError: one does not.
    """
    found = []
    for place in range(len(source)):
        row = source.peek(place, ("json",)).get("json")
        if not isinstance(row, Mapping) or row.get("patient") is None or not row.get("when"):
            raise ValueError(
                f"{source.name}: sample {place} does not say `patient` and `when`: pairs need both. The tables that "
                "`import-mimic-cxr` and `import-mimic-ecg` write have them."
            )
        found.append(Study(row["patient"], datetime.fromisoformat(row["when"])))
    return found
