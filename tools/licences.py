"""The licence of every installed dependency, and which of them are not permissive.

uv run python -m tools.licences
"""

from __future__ import annotations

import re
from importlib.metadata import Distribution, distributions

PERMISSIVE = re.compile(
    r"\b(mit|apache|bsd|isc|psf|python software foundation|unlicense|zlib|0bsd|hpnd|cc0|public domain|boost|ofl)\b",
    re.I,
)


def licence(package: Distribution) -> str:
    """What a package's metadata say: the SPDX expression, else the classifiers, else the old field."""
    data = package.metadata
    if data.get("License-Expression"):
        return data["License-Expression"]
    classified = [
        line.split("::")[-1].strip() for line in data.get_all("Classifier") or () if line.startswith("License")
    ]
    return ", ".join(classified) or (data.get("License") or "not stated").strip().splitlines()[0][:60]


def main() -> None:
    from rich.console import Console
    from rich.table import Table

    found = {package.metadata["Name"]: package for package in distributions()}
    table = Table(box=None, pad_edge=False)
    for column in ("package", "version", "licence", ""):
        table.add_column(column)
    for name in sorted(found, key=str.lower):
        terms = licence(found[name])
        table.add_row(name, found[name].version, terms, "" if PERMISSIVE.search(terms) else "look")
    Console().print(table)


if __name__ == "__main__":
    main()
