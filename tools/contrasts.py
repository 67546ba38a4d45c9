"""Write docs/contrasts.md: what every contrast is composed of, as declared in the code.

python -m tools.contrasts
"""

from __future__ import annotations

from pathlib import Path

from collimate.inventory import AXES, contrasts

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "contrasts.md"

HEAD = """# What each contrast is composed of

Every contrastive loss is a choice of similarity, targets, weights and negatives over one tiled core
(`collimate.losses`), exact over ranks. The choices are declared beside the code by `collimate.losses.composition`;
this page is written from them by `python -m tools.contrasts`, and `collimate list --kind contrasts` shows them.
"""


def document() -> str:
    """The page: losses first, then methods."""
    rows = sorted(contrasts(), key=lambda row: (row[0].split(".")[-1][0].isupper(), row[0]))
    lines = [HEAD, "| | " + " | ".join(AXES) + " |", "|---" * (1 + len(AXES)) + "|"]
    lines += [f"| `{row[0]}` | " + " | ".join(cell.replace("|", r"\|") for cell in row[1:]) + " |" for row in rows]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    DOCUMENT.parent.mkdir(exist_ok=True)
    DOCUMENT.write_text(document(), encoding="utf-8")
