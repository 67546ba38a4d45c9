"""The parts of a radiological report that say what was seen.

A report is a text with headings in capitals before a colon. MoRE (Thapa et al. 2024; preprocessing/preprocess_notes.py)
takes findings and impression, the whole of it where it has neither, without the marks that stand for removed words and
without sentences that have a clock time, which tell whom the radiologist called and when.
"""

from __future__ import annotations

import re

SECTIONS = ("FINDINGS", "IMPRESSION")

_HEADING = re.compile(r"^[ \t]*([A-Z][A-Z /&()-]{2,40}):", re.MULTILINE)
_REMOVED = re.compile(r"_+")
_CLOCK = re.compile(r"\b\d{1,2}:\d{2}\b|\b\d{1,2}\s?[ap]\.?m\b", re.IGNORECASE)
_SENTENCE = re.compile(r"(?<=[.!?])(?<!\bDr\.)(?<!\bDrs\.)\s+")


def report_sections(report: str) -> dict[str, str]:
    """Heading -> what stands below it, blanks squeezed; the parts of a heading that occurs twice follow each other."""
    found: dict[str, str] = {}
    headings = list(_HEADING.finditer(report))
    ends = [match.start() for match in headings[1:]] + [len(report)]
    for match, end in zip(headings, ends, strict=False):  # a report without headings has one end
        name, text = match.group(1).strip(), " ".join(report[match.end() : end].split())
        if text:
            found[name] = f"{found[name]} {text}" if name in found else text
    return found


def report_text(report: str) -> str:
    """Findings and impression as one text, without removed words and clock times; may be empty."""
    sections = report_sections(report)
    chosen = [sections[name] for name in SECTIONS if name in sections]
    return cleaned(" ".join(chosen) if chosen else report)


def cleaned(text: str) -> str:
    """A text without the marks of removed words, and without sentences that have a clock time; blanks squeezed."""
    squeezed = " ".join(_REMOVED.sub(" ", text).split())
    kept = [sentence for sentence in _SENTENCE.split(squeezed) if not _CLOCK.search(sentence)]
    return re.sub(r"\s+([.,;])", r"\1", " ".join(kept)).strip()
