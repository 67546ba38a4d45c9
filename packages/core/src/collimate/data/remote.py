"""Files at URLs: downloaded as a whole to a cache of limited size, with retries.

fsspec opens the URLs, so `s3://`, `gs://`, `hf://`, `https://` and the rest work where their packages are
installed.
"""

from __future__ import annotations

import logging
import os
import random
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

from filelock import FileLock

from collimate.data.files import cache_folder

log = logging.getLogger(__name__)

CHUNK = 8 * 2**20


def is_remote(url: str) -> bool:
    return "://" in url


class RemoteFiles:
    """A local cache of remote files, shared by all processes that use the same folder.

    Args:
        folder: of the cache; a subfolder of the user's cache if None.
        size: bytes to keep; the files used least recently go first.
        attempts: tries for each file before giving up.
        wait: seconds before the second try; doubled for each further one, with up to half as much again at random.
    """

    def __init__(self, folder: str | None = None, size: int = 100 * 2**30, attempts: int = 5, wait: float = 1.0):
        self.folder = Path(folder) if folder else cache_folder() / "shards"
        self.size, self.attempts, self.wait = size, attempts, wait
        self._pool: ThreadPoolExecutor | None = None
        self._asked: set[str] = set()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self.folder), self.size, self.attempts, self.wait)

    @staticmethod
    def glob(pattern: str) -> list[str]:
        """The URLs that a pattern with wildcards names."""
        import fsspec

        filesystem, path = fsspec.core.url_to_fs(pattern)
        return sorted(filesystem.unstrip_protocol(match) for match in filesystem.glob(path))

    def path(self, url: str) -> Path:
        """Where the copy of a URL lies, or will lie."""
        return self.folder / f"{sha256(url.encode()).hexdigest()[:24]}-{url.split('?')[0].rsplit('/', 1)[-1]}"

    def local(self, url: str) -> str:
        """The path of a local copy, downloaded first where there is none.

        Raises:
            FileNotFoundError: there is no such file.
            OSError: all attempts failed; says how often and why at last.
        """
        path = self.path(url)
        try:
            os.utime(path)  # marks it as used just now
            return str(path)
        except FileNotFoundError:
            pass
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not path.exists():  # unless another process has just fetched it
                self._download(url, path)
        self._evict(path)
        return str(path)

    def try_local(self, url: str) -> str | None:
        """As `local`, but None where there is no such file."""
        try:
            return self.local(url)
        except FileNotFoundError:
            return None

    def prefetch(self, urls: Sequence[str]) -> None:
        """Download in the background what is not there yet. Failures show when the file is needed."""
        for url in urls:
            if url not in self._asked and not self.path(url).exists():
                self._pool = self._pool or ThreadPoolExecutor(2, "collimate-prefetch")
                self._asked.add(url)
                self._pool.submit(self.try_local, url).add_done_callback(lambda _, url=url: self._asked.discard(url))

    def _download(self, url: str, path: Path) -> None:
        for attempt in range(1, self.attempts + 1):
            try:
                return self._copy(url, path)
            except FileNotFoundError:
                raise
            except Exception as error:  # filesystems raise whatever their client libraries raise
                if attempt == self.attempts:
                    raise OSError(f"{url}: {attempt} attempts to download it failed; the last: {error}") from error
                pause = self.wait * 2 ** (attempt - 1) * (1 + random.Random().random() / 2)
                log.warning("%s: %s; trying again in %.1f s", url, error, pause)
                time.sleep(pause)
        return None

    def _copy(self, url: str, path: Path) -> None:
        import fsspec

        filesystem, remote = fsspec.core.url_to_fs(url)
        expected = filesystem.info(remote).get("size")
        descriptor, temporary = tempfile.mkstemp(dir=self.folder, prefix=".download-")
        try:
            with os.fdopen(descriptor, "wb") as target, filesystem.open(remote, "rb") as origin:
                while chunk := origin.read(CHUNK):
                    target.write(chunk)
                written = target.tell()
            if expected is not None and written != expected:
                raise OSError(f"got {written} of {expected} bytes")
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise

    def _evict(self, keep: Path) -> None:
        """Delete what was used least recently until the cache fits. A deleted file that is open stays readable."""
        files = []
        for path in self.folder.iterdir():
            if path.suffix != ".lock" and not path.name.startswith("."):
                try:
                    status = path.stat()
                except FileNotFoundError:  # another process was faster
                    continue
                files.append((status.st_mtime, status.st_size, path))
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files, key=lambda file: file[0]):
            if total <= self.size:
                break
            if path != keep:
                path.unlink(missing_ok=True)
                total -= size
