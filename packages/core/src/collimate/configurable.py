"""Objects that remember how they were built, so that a folder can say it and a loader can repeat it.

A configuration is plain data, in the form that LightningCLI writes too:
`{"class_path": "collimate.encoders.TimmImageEncoder", "init_args": {"name": "vit_tiny_patch16_224"}}`.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping, Sequence
from os import PathLike, fspath
from typing import Any, Self

TRUSTED_PACKAGES = ("collimate",)
"""Top-level packages whose classes a configuration file may name: these and every `collimate_*`."""


def at_least(least: float, **values: float | None) -> None:
    """Raise ValueError where an argument is smaller; it names the argument. None is not given, and passes."""
    for name, value in values.items():
        if value is not None and not value >= least:
            raise ValueError(f"{name} is {value:g}, where {least:g} or more is expected: raise it.")


class Configurable:
    """Mix-in that records the constructor's arguments.

    They are caught in `__new__`, so that a subclass keeps its plain `__init__` and its signature.
    """

    _built: tuple[type, tuple[Any, ...], dict[str, Any]]

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        instance = super().__new__(cls)
        # The class too: FSDP2 later gives its modules another one.
        object.__setattr__(instance, "_built", (cls, args, kwargs))
        return instance

    def config(self) -> dict[str, Any]:
        """The class and its constructor's arguments as plain data.

        An argument `pretrained` says with which weights to begin, and is left out: what is saved has weights beside it.

        Raises:
            TypeError: an argument is neither plain data nor a `Configurable`.
        """
        cls, args, kwargs = self._built
        if cls.__init__ is object.__init__:
            return {"class_path": class_path(cls), "init_args": {}}
        bound = inspect.signature(cls.__init__).bind(self, *args, **kwargs)
        bound.apply_defaults()  # a later change of a default must not change what this object was
        init_args: dict[str, Any] = {}
        arguments = {name: value for name, value in bound.arguments.items() if name != "pretrained"}
        for name, value in list(arguments.items())[1:]:
            kind = bound.signature.parameters[name].kind
            if kind is inspect.Parameter.VAR_KEYWORD:
                init_args.update({key: _plain(item, f"{name}.{key}") for key, item in value.items()})
            elif kind is inspect.Parameter.VAR_POSITIONAL:
                raise TypeError(f"{cls.__name__}: a Configurable class cannot take *{name}.")
            else:
                init_args[name] = _plain(value, f"{cls.__name__}.{name}")
        return {"class_path": class_path(cls), "init_args": init_args}

    def changed(self, **arguments: Any) -> Self:
        """One like this, built anew with some of the constructor's arguments changed."""
        cls, args, kwargs = self._built
        bound = inspect.signature(cls.__init__).bind(self, *args, **kwargs)
        given = dict(list(bound.arguments.items())[1:])
        for name in [name for name, each in bound.signature.parameters.items() if each.kind is each.VAR_KEYWORD]:
            given |= given.pop(name, {})
        return cls(**(given | arguments))


def class_path(cls: type) -> str:
    """The shortest public dotted path: a class exported by a parent package is named there."""
    parts = cls.__module__.split(".")
    for depth in range(1, len(parts)):
        parent = ".".join(parts[:depth])
        if getattr(importlib.import_module(parent), cls.__name__, None) is cls:
            return f"{parent}.{cls.__name__}"
    return f"{cls.__module__}.{cls.__qualname__}"


def build(config: Mapping[str, Any], trust: Sequence[str] = ()) -> Any:
    """Build what `Configurable.config` described.

    Args:
        config: a mapping with `class_path` and, optionally, `init_args`.
        trust: further top-level packages whose classes may be named. A configuration comes with a
            checkpoint, which may come from anywhere, so it cannot name just any callable.

    Raises:
        ValueError: the class lies outside the trusted packages, or is no `Configurable`.
        ImportError: the class cannot be found.
    """
    path = config["class_path"]
    package = path.split(".")[0]
    if not (package in (*TRUSTED_PACKAGES, *trust) or package.startswith("collimate_")):
        raise ValueError(
            f"The configuration names {path!r}, which is outside the trusted packages. If you know where it "
            f"comes from, pass trust=[{package!r}]."
        )
    module_name, _, class_name = path.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise ImportError(f"Cannot find {path!r}: is the package {package!r} installed? ({error})") from error
    if not (inspect.isclass(cls) and issubclass(cls, Configurable)):
        raise ValueError(f"{path!r} is not a Configurable class, so a configuration cannot build it.")
    init_args = {key: _built(value, trust) for key, value in dict(config.get("init_args") or {}).items()}
    return cls(**init_args)


def _plain(value: Any, name: str) -> Any:
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Configurable):
        return value.config()
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{name}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{name}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, PathLike):
        return fspath(value)
    raise TypeError(f"{name} is a {type(value).__name__}, which cannot be written down as plain configuration.")


def _built(value: Any, trust: Sequence[str]) -> Any:
    if isinstance(value, Mapping):
        if "class_path" in value:
            return build(value, trust)
        return {key: _built(item, trust) for key, item in value.items()}
    if isinstance(value, list):
        return [_built(item, trust) for item in value]
    return value
