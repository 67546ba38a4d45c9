"""The app's own verbs. What is heavy is imported when they run."""

from __future__ import annotations
