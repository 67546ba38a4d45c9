"""The API reference: for every package its README, and a page for each module that exports names."""

from __future__ import annotations

from pathlib import Path

from tools.pages.sources import PACKAGES, exported, source_folder

OPTIONS = "    options:\n      show_root_toc_entry: false\n      members:\n"


def modules() -> dict[str, list[str]]:
    """Package -> its public modules: the package itself where it exports names, and each subpackage that does."""
    return {package: _modules(source_folder(package), package) for package in PACKAGES}


def uri_of(module: str) -> str:
    package, _, rest = module.partition(".")
    return f"reference/{package}/{rest.replace('.', '/') or 'package'}.md"


def page_of(module: str) -> str:
    """A page that lists what a module exports and no module above it does."""
    lines = "".join(f"        - {name}\n" for name in _own(module))
    return f"# {module}\n\n::: {module}\n{OPTIONS}{lines}"


def _own(module: str) -> list[str]:
    above = module.split(".")[:-1]
    known = {name for depth in range(len(above)) for name in exported(_init(".".join(above[: depth + 1])))}
    return [name for name in exported(_init(module)) if name not in known]


def _modules(folder: Path, package: str) -> list[str]:
    found = [init for init in sorted(folder.rglob("__init__.py")) if exported(init)]
    names = [".".join([package, *init.parent.relative_to(folder).parts]) for init in found]
    return [name for name in names if _own(name)]


def _init(module: str) -> Path:
    package, *rest = module.split(".")
    return source_folder(package).joinpath(*rest, "__init__.py")
