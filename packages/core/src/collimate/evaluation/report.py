"""Reports: one HTML file that needs nothing else, and the same numbers as JSON beside it."""

from __future__ import annotations

import base64
import html
import io
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from collimate.evaluation.modalities import Exhibit
from collimate.processing.image import RawImage, open_image

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURE = 160  # pixels of the shorter side in reports
DRAWING = 480  # the same, of large pictures, on which something is drawn
INK = "#0a0b0c"
"""What figures draw with; in the report it becomes the colour of the text, in light and dark."""

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2330; --soft: #697386; --line: #e3e7ee; --page: #f6f7f9;
  --card: #fff; --accent: #3459c7; --good: #2a8a57; --bad: #c0453b }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --soft: #98a2b3; --line: #2d3442; --page: #12151b;
  --card: #1a1f28; --accent: #8aa6ff; --good: #5cc48d; --bad: #ef8379 } }
* { box-sizing: border-box }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.55 system-ui, "Segoe UI", Roboto,
  "Helvetica Neue", sans-serif }
main { max-width: 1020px; margin: 0 auto; padding: 40px 24px 72px }
h1 { font-size: 27px; letter-spacing: -.015em; margin: 0 }
header p { color: var(--soft); margin: 4px 0 0 }
h2 { font-size: 20px; letter-spacing: -.01em; margin: 44px 0 12px; padding-top: 20px;
  border-top: 1px solid var(--line) }
h3 { font-size: 14px; color: var(--soft); font-weight: 600; margin: 26px 0 8px }
p { max-width: 72ch }
table { border-collapse: collapse; background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  border-spacing: 0; overflow: hidden; min-width: 360px }
th, td { padding: 6px 16px; text-align: right; font-variant-numeric: tabular-nums;
  border-bottom: 1px solid var(--line) }
th { color: var(--soft); font-weight: 600; font-size: 13px }
th:first-child, td:first-child { text-align: left }
tr:last-child td { border-bottom: 0 }
.scroll { overflow: auto; max-height: 480px; max-width: 100%; width: fit-content; border-radius: 8px }
.scroll th { position: sticky; top: 0; background: var(--card) }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 18px; font-size: 13px; margin: 16px 0 }
dt { color: var(--soft) } dd { margin: 0; overflow-wrap: anywhere }
figure { margin: 18px 0; background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 14px }
figure svg { max-width: 100%; height: auto; display: block; margin: 0 auto }
figcaption { color: var(--soft); font-size: 13px; margin-top: 8px; text-align: center }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(145px, 1fr)); gap: 12px }
.gallery figure { margin: 0; padding: 8px } .gallery img { width: 100%; aspect-ratio: 1; object-fit: cover;
  border-radius: 5px; display: block }
.gallery audio { width: 100%; height: 32px; margin-top: 6px; display: block }
.gallery figure:has(audio) img { aspect-ratio: 3 / 2 }
.gallery figcaption { font-size: 12.5px; line-height: 1.4; text-align: left; overflow-wrap: anywhere }
.gallery.large { grid-template-columns: repeat(auto-fill, minmax(260px, 1fr)) }
.gallery.wide { grid-template-columns: repeat(auto-fill, minmax(380px, 1fr)) } .gallery.wide img { aspect-ratio: auto }
.words { line-height: 2; max-width: none } .words span { border-radius: 4px; padding: 2px 3px }
.good figure { border-top: 3px solid var(--good) } .bad figure { border-top: 3px solid var(--bad) }
footer { color: var(--soft); font-size: 12.5px; margin-top: 56px }
"""


class Report:
    """Sections in the order in which they are added. All text is escaped.

    Args:
        title: the heading.
        subtitle: a line below it.
    """

    _numbers = itertools.count()

    def __init__(self, title: str, subtitle: str = "") -> None:
        self.title, self.subtitle = title, subtitle
        self.data: dict[str, Any] = {}
        self._parts: list[str] = []

    def record(self, name: str, value: Any) -> None:
        """Put plain data into the JSON file; a name that is taken gets a number."""
        taken = next(f"{name} {n}" if n > 1 else name for n in itertools.count(1) if _free(self.data, name, n))
        self.data[taken] = value

    def add_heading(self, text: str) -> None:
        """Begin a section."""
        self._parts.append(f"<h2>{html.escape(text)}</h2>")

    def add_text(self, text: str) -> None:
        """A paragraph."""
        self._parts.append(f"<p>{html.escape(text)}</p>")

    def add_facts(self, facts: Mapping[str, Any]) -> None:
        """Small print: names with their values."""
        pairs = "".join(
            f"<dt>{html.escape(str(name))}</dt><dd>{html.escape(_plain(value))}</dd>" for name, value in facts.items()
        )
        self._parts.append(f"<dl>{pairs}</dl>")

    def add_table(self, columns: Sequence[str], rows: Iterable[Sequence[Any]], title: str = "") -> None:
        """A table; the first column is set left, the others right."""
        head = "".join(f"<th>{html.escape(str(name))}</th>" for name in columns)
        body = "".join(f"<tr>{''.join(f'<td>{html.escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows)
        self._title(title)
        self._parts.append(
            f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        )

    def add_figure(self, figure: Figure, caption: str = "") -> None:
        """A matplotlib figure as SVG; what it draws in `INK` takes the colour of the text."""
        import matplotlib

        file = io.StringIO()
        # Each figure salts its ids anew: several share a page. Text stays text, in the page's own font.
        with matplotlib.rc_context({"svg.hashsalt": f"figure {next(self._numbers)}", "svg.fonttype": "none"}):
            figure.savefig(file, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None})
        drawing = file.getvalue()
        drawing = drawing[drawing.index("<svg") :].replace(INK, "currentColor")
        drawing = re.sub(r"<style.*?</style>|<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)
        drawing = re.sub(r"font(: [\d.]+px) [^;\"]*", r"font\1 system-ui, sans-serif", drawing)
        self._parts.append(f"<figure>{drawing}{_caption(caption)}</figure>")

    def add_images(self, images: Iterable[tuple[RawImage | Exhibit, str]], title: str = "", kind: str = "") -> None:
        """Pictures with captions; those of sounds with a player below.

        Args:
            images: (picture, caption).
            title: above them.
            kind: words, of which `good` and `bad` mark them by colour, `large` shows them larger, and `wide` larger and
                uncut.
        """
        side = DRAWING if {"large", "wide"} & set(kind.split()) else PICTURE
        cells = "".join(f"<figure>{_shown(each, side)}{_caption(text)}</figure>" for each, text in images)
        if cells:
            self._title(title)
            self._parts.append(f'<div class="gallery {html.escape(kind)}">{cells}</div>')

    def add_words(self, words: Iterable[tuple[str, float]], title: str = "") -> None:
        """A text whose words are tinted by a number each: blue from 0 to 1, red from 0 to -1.

        Args:
            words: (word, number), in order; numbers beyond 1 count as 1.
            title: above them.
        """
        tints = [
            f'<span style="background: rgba({"52, 89, 199" if number > 0 else "192, 69, 59"}, '
            f'{0.75 * min(abs(number), 1):.2f})">{html.escape(word)}</span>'
            for word, number in words
        ]
        self._title(title)
        self._parts.append(f'<p class="words">{" ".join(tints)}</p>')

    def add_examples(
        self, best: Iterable[tuple[RawImage | Exhibit, str]], worst: Iterable[tuple[RawImage | Exhibit, str]]
    ) -> None:
        """The best and the worst answers, as pictures with captions."""
        self.add_images(best, "Surest hits", "good")
        self.add_images(worst, "Surest mistakes", "bad")

    def html(self) -> str:
        """The whole page."""
        from collimate import __version__

        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{html.escape(self.title)}</title><style>{_STYLE}</style></head><body><main>"
            f"<header><h1>{html.escape(self.title)}</h1><p>{html.escape(self.subtitle)}</p></header>\n"
            + "\n".join(self._parts)
            + f"\n<footer>Collimate {__version__}</footer></main></body></html>\n"
        )

    def save(self, folder: str | Path) -> Path:
        """Write `report.html` and `report.json`.

        Returns:
            the path of the page.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        data = {"title": self.title, "subtitle": self.subtitle, **self.data}
        (folder / "report.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        page = folder / "report.html"
        page.write_text(self.html(), encoding="utf-8")
        return page

    def _title(self, title: str) -> None:
        if title:
            self._parts.append(f"<h3>{html.escape(title)}</h3>")


def _free(data: Mapping[str, Any], name: str, number: int) -> bool:
    return (f"{name} {number}" if number > 1 else name) not in data


def _caption(text: str) -> str:
    return f"<figcaption>{html.escape(text)}</figcaption>" if text else ""


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{name}: {_plain(item)}" for name, item in value.items())
    return str(value)


def _shown(each: RawImage | Exhibit, side: int) -> str:
    exhibit = each if isinstance(each, Exhibit) else Exhibit(each)
    picture = f'<img alt="" src="{_inline(exhibit.picture, side)}">'
    if exhibit.sound is None:
        return picture
    sound = f"data:{exhibit.sound_type};base64,{base64.b64encode(exhibit.sound).decode()}"
    return f'{picture}<audio controls preload="none" src="{html.escape(sound)}"></audio>'


def _inline(raw: RawImage, side: int) -> str:
    """A small JPEG as a data address."""
    picture = open_image(raw).convert("RGB")
    scale = side / min(picture.size)
    if scale < 1:
        picture = picture.resize((round(picture.width * scale), round(picture.height * scale)))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
