"""Packages of one version that install alone."""

import shutil

import pytest

from tools import release


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """The packages' project files and the changelog, to be changed."""
    for file in [*release.projects().values(), release.ROOT / "CHANGELOG.md"]:
        target = tmp_path / file.relative_to(release.ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    monkeypatch.setattr(release, "ROOT", tmp_path)
    return tmp_path


def test_all_packages_state_the_version_of_the_changelog():
    release.check()


def test_a_new_version_is_stated_everywhere(copied):
    release.set_version("7.8.9")
    assert release.stated_version() == "7.8.9"
    release.check()
    changes = (copied / "CHANGELOG.md").read_text()
    assert "unreleased" not in changes
    release.set_version("7.9.0")
    assert (copied / "CHANGELOG.md").read_text().count("\n## 7.") == 2


def test_a_package_of_another_version_is_named(copied):
    file = copied / "packages" / "audio" / "pyproject.toml"
    file.write_text(
        file.read_text().replace('version = "', 'version = "9.', 1).replace('"collimate==', '"collimate>=', 1)
    )
    with pytest.raises(ValueError, match=r"(?s)audio/pyproject.toml states version 9.*asks for 'collimate>="):
        release.check()


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("resolution", ["highest", "lowest-direct"])
def test_every_package_installs_alone_and_runs(tmp_path, resolution):
    release.build(str(tmp_path))
    release.alone(str(tmp_path), resolution=resolution)
