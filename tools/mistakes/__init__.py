"""Provoked mistakes of users, and what is printed: `python -m tools.mistakes` writes docs/mistakes.md."""
