"""Fixtures and settings for every test: where real data lies, and process groups that need no network."""

import os

# Side by side, the test processes share the cores: threads that wait for one another are slow where cores lack. Torch
# reads this once, when it is imported.
if (processes := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))) > 1:
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # gloo would otherwise look the host name up
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import random
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

# In CI the examples are the same every time, and a slow machine is no failure.
settings.register_profile("ci", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
if os.environ.get("CI"):
    settings.load_profile("ci")


def _seed(name: str) -> None:
    """What a test draws depends on its name alone: not on the tests before it, nor on which process runs it."""
    seed = zlib.crc32(name.encode())
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (the state that code under test may draw from)
    torch.manual_seed(seed)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef) -> None:
    _seed(f"{fixturedef.baseid}::{fixturedef.argname}")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    _seed(item.nodeid)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The command line's tests take minutes a file: begun last, they would be waited for by one process alone."""
    items.sort(key=lambda item: "end_to_end" not in item.nodeid)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets beside the repository; tests that need one skip where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data sets at {folder}")
    return folder
