"""The files that READMEs and pages speak of, small, below one folder."""

from pathlib import Path

import pytest

from .inputs import write_inputs


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the code and the commands of the pages run."""
    return write_inputs(tmp_path_factory.mktemp("docs"))
