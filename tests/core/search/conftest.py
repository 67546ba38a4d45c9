"""One pair of models and one index for all tests of search."""

from pathlib import Path

import pytest

from collimate.search import Searcher, SearchIndex, Space, open_space, write_index

from .pair import write_data, write_pair


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write_pair(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def space(checkpoints: list[str]) -> Space:
    return open_space(checkpoints, "cpu")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def index_folder(space: Space, data: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("index") / "index"
    write_index(space, data, folder, samples_per_file=3)
    return folder


@pytest.fixture
def searcher(space: Space, index_folder: Path) -> Searcher:
    return Searcher(space, SearchIndex(index_folder))
