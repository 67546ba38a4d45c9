"""Plain lines on the console, beside progress bars."""

from rich import get_console


def say(message: str) -> None:
    """Print as it is: no markup, so that brackets in paths survive; no wrapping, so that paths can be copied."""
    get_console().print(message, markup=False, highlight=False, soft_wrap=True)
