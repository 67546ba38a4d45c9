"""Releases: one version for all packages, which CHANGELOG.md states first.

    python -m tools.release check           # do all packages state the changelog's version, and ask each other for it?
    python -m tools.release version 0.2.0   # state a new one everywhere
    python -m tools.release build dist      # wheels and source distributions of all packages
    python -m tools.release alone dist      # each installs alone into an empty environment, imports, and runs

Publishing is `uv publish dist/*`, after the three have passed.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
UV = [sys.executable, str(ROOT / "tools" / "uv.py")]
HEADING = re.compile(r"^## (\d+\.\d+\.\d+) \((.+)\)$", re.MULTILINE)


def projects() -> dict[str, Path]:
    """Distribution name -> its pyproject.toml, of every package and app."""
    files = sorted([*ROOT.glob("packages/*/pyproject.toml"), *ROOT.glob("apps/*/pyproject.toml")])
    return {tomllib.loads(file.read_text(encoding="utf-8"))["project"]["name"]: file for file in files}


def stated_version() -> str:
    """The version that the changelog's first heading names."""
    found = HEADING.search((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))
    if found is None:
        raise ValueError("CHANGELOG.md has no heading such as '## 0.2.0 (unreleased)'.")
    return found[1]


def check() -> None:
    """Raise ValueError where a package states another version, or asks another package for another."""
    if wrong := list(_wrong(stated_version())):
        raise ValueError("\n".join([*wrong, f"`python -m tools.release version {stated_version()}` mends all of it."]))


def _wrong(version: str) -> Iterator[str]:
    own = projects()
    for file in own.values():
        project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
        where = file.relative_to(ROOT)
        if project["version"] != version:
            yield f"{where} states version {project['version']}, CHANGELOG.md {version}."
        for line in project["dependencies"]:
            asked = re.split(r"[\[=<>~! ]", line)[0]
            if asked in own and not line.endswith(f"=={version}"):
                yield f"{where} asks for {line!r}, not for {asked}=={version}: the packages are released together."


def set_version(version: str) -> None:
    """State a version in every package, in what they ask of each other, and in the changelog with today's date."""
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        raise ValueError(f"A version is three numbers such as 0.2.0, not {version!r}.")
    own = projects()
    names = "|".join(sorted(own, key=len, reverse=True))
    for file in own.values():
        text = file.read_text(encoding="utf-8")
        text = re.sub(r'^version = ".*"$', f'version = "{version}"', text, count=1, flags=re.MULTILINE)
        text = re.sub(rf'^(    "(?:{names})(?:\[.*\])?)(?:==[\d.]+)?",$', rf'\1=={version}",', text, flags=re.MULTILINE)
        file.write_text(text, encoding="utf-8")
    changes = ROOT / "CHANGELOG.md"
    heading = f"## {version} ({datetime.now(UTC).date().isoformat()})"
    text = changes.read_text(encoding="utf-8")
    new = HEADING.sub(heading, text, count=1) if "unreleased" in text else HEADING.sub(heading + r"\n\n\g<0>", text, 1)
    changes.write_text(new, encoding="utf-8")


def build(folder: str) -> None:
    """Write a wheel and a source distribution of every package into `folder`."""
    subprocess.run([*UV, "build", "--quiet", "--all-packages", "--out-dir", folder], cwd=ROOT, check=True)


def alone(folder: str, python: str = "3.11", resolution: str = "highest") -> None:
    """Install each wheel of `folder` into an environment of its own, with its dependencies only, and use it.

    Args:
        python: version of the interpreter; uv fetches what is not there.
        resolution: `lowest-direct` takes the oldest dependencies that a package says it works with.

    Raises:
        subprocess.CalledProcessError: one does not install, import or run; its output is printed before.
    """
    for name, file in projects().items():
        with tempfile.TemporaryDirectory() as environment:
            subprocess.run([*UV, "venv", "--quiet", "--python", python, environment], check=True)
            interpreter = str(Path(environment) / "bin" / "python")
            pip = [*UV, "pip", "install", "--quiet", "--python", interpreter, "--resolution", resolution]
            # The index has no say in our own packages: what is tried is what lies in the folder.
            wheels = sorted(Path(folder).glob(f"{name.replace('-', '_')}-*.whl"))
            subprocess.run([*pip, "--find-links", folder, *wheels], check=True, cwd=environment)
            module = next((file.parent / "src").iterdir()).name
            subprocess.run([interpreter, "-c", f"import {module}"], check=True, cwd=environment)
            if module.endswith("_app"):
                _try_app(interpreter, module, environment)
            print(f"{name}: installs alone with Python {python} ({resolution}), imports, runs", flush=True)


def _try_app(interpreter: str, module: str, environment: str) -> None:
    """Some steps of the app's demo: the recipe, the embedded data, training and a written model."""
    find = f"from {module} import APP; print(APP.name)"
    app = subprocess.run([interpreter, "-c", find], check=True, capture_output=True, text=True).stdout.strip()
    steps = ["--trainer.max_steps", "2", "--data.batch_size", "8", "--evaluation", "{}", "--output", "tried"]
    subprocess.run([interpreter, "-m", "collimate", app, "train", *steps], check=True, cwd=environment)
    if not (Path(environment) / "tried" / "model" / "model.safetensors").is_file():
        raise RuntimeError(f"`collimate {app} train` ended without a model.")


if __name__ == "__main__":
    from jsonargparse import auto_cli

    try:
        auto_cli({"check": check, "version": set_version, "build": build, "alone": alone})
    except ValueError as error:
        raise SystemExit(str(error)) from None
