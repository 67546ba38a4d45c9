"""Make every mistake, check what is printed, and write the page.

python -m tools.mistakes                     # writes docs/mistakes.md
python -m tools.mistakes --only unknown_app  # prints one message
"""

from __future__ import annotations

import argparse

from .page import DOCUMENT, document, messages
from .rows import MISTAKES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="the name of the function that makes one mistake")
    options = parser.parse_args()
    found = messages([row for row in MISTAKES if options.only in (None, row.provoke.__name__)])
    faults = 0
    for row, message in found:
        lacking = row.lacking(message)
        faults += bool(lacking)
        if lacking or options.only:
            print(f"{row.provoke.__name__}: {message}\n  lacks: {', '.join(lacking) or 'nothing'}")
    if not options.only:
        DOCUMENT.write_text(document(found), encoding="utf-8")
    raise SystemExit(1 if faults else 0)


if __name__ == "__main__":
    main()
