"""Small things about files: reading at an offset, writing all or nothing, where the cache lies."""

from __future__ import annotations

import os
import tempfile
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MAX_OPEN_FILES = 64


class FileReader:
    """Reads parts of files; opens them lazily in each process and keeps the latest open.

    Safe to pickle and to fork: `pread` has no file position that processes could share.
    """

    def __init__(self) -> None:
        self._open: OrderedDict[str, int] = OrderedDict()

    def read(self, path: str, offset: int, length: int) -> bytes:
        """The bytes at an offset; fewer where the file ends.

        Raises:
            OSError: the file cannot be opened or read.
        """
        descriptor = self._open.get(path)
        if descriptor is None:
            descriptor = self._open[path] = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            if len(self._open) > MAX_OPEN_FILES:
                os.close(self._open.popitem(last=False)[1])
        self._open.move_to_end(path)
        data = os.pread(descriptor, length, offset)
        while 0 < len(data) < length:  # a single read gives at most 2 GiB
            more = os.pread(descriptor, length - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])

    def __del__(self) -> None:
        self.close()

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return type(self), ()


def cache_folder() -> Path:
    """Where downloads and indexes are kept: `COLLIMATE_CACHE`, or `collimate` in the user's cache."""
    if folder := os.environ.get("COLLIMATE_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "collimate"


@contextmanager
def naming_file(path: Path) -> Iterator[None]:
    """While it is written: what the system refuses of an open file, as on a full disk, comes without its name."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that it is there as a whole or not at all, also when several processes write it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with naming_file(path), os.fdopen(descriptor, "wb") as file:
            file.write(data)
        os.chmod(temporary, 0o644)  # mkstemp's 0600 would hide it from the other users of a shared folder
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
