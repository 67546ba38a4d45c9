"""A page on which an index is searched, for the browser of this machine alone.

The standard library's server and one HTML file that holds its own style and script: nothing is fetched from elsewhere
and nothing has to be installed, so the page works offline, which Gradio or a model in the browser would not promise.
Queries are encoded by this process.

Whoever can reach the page may search, so only this machine can: the server listens on 127.0.0.1, and refuses requests
whose Host is another name (a page elsewhere whose name was made to point here) and searches whose Origin is another
page. Nothing in a request names a file: what is shown of a sample is asked for by its number in the index. Queries
larger than a limit are refused before they are read, and errors are told in a sentence, without traces.

| request | answer |
|---|---|
| `GET /` | the page |
| `GET /about` | JSON: `modalities` of the index with counts, `queries`, what can be asked by, `endings` of files |
| `POST /search?k=10&among=image` | JSON: `hits`. The body is JSON, `{"text": ...}` |
| `POST /search?k=10&name=bird.png` | the same by a file, which is the body; its name tells by its ending what it is |
| `GET /picture/12`, `GET /sound/12` | what there is to see and to hear of sample 12 |
"""

from __future__ import annotations

import io
import json
import logging
from collections import Counter
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from threading import Lock
from typing import Any
from urllib.parse import parse_qs, urlsplit

from collimate.console import say
from collimate.data import CorruptSample
from collimate.data.decoding import extensions_of
from collimate.evaluation.modalities import Exhibit
from collimate.processing.image import open_image
from collimate.search.hit import Hit
from collimate.search.searcher import Searcher

log = logging.getLogger(__name__)

ADDRESS = "127.0.0.1"
PORT = 8377
LARGEST_QUERY = 32 * 2**20  # bytes
MOST = 200  # ours: samples a page shows at most
SIDE = 320  # pixels of the longer side of what is shown
PATIENCE = 30  # seconds for a request to come
PAGE = files("collimate.search") / "page.html"
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; img-src 'self' blob:; media-src 'self' blob:; connect-src 'self'; "
    "script-src 'unsafe-inline'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def serve(searcher: Searcher, port: int = PORT, largest_query: int = LARGEST_QUERY) -> None:
    """Serve the page until Ctrl-C.

    Args:
        searcher: an index with its models.
        port: of 127.0.0.1; 0 takes a free one.
        largest_query: bytes of a file that is searched by.

    Raises:
        OSError: the port is taken.
    """
    with SearchServer(searcher, port, largest_query) as server:
        say(f"Search {len(searcher.index)} samples: http://{ADDRESS}:{server.server_port}/   (Ctrl-C ends it)")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            say("Stopped.")


class SearchServer(ThreadingHTTPServer):
    """The server behind the page.

    Args:
        searcher, port, largest_query: as for `serve`.
    """

    daemon_threads = True

    def __init__(self, searcher: Searcher, port: int = PORT, largest_query: int = LARGEST_QUERY) -> None:
        try:
            super().__init__((ADDRESS, port), _Handler)
        except OSError as error:
            raise OSError(f"Port {port} cannot be had ({error.strerror}): choose another with --port.") from error
        self.searcher, self.largest_query = searcher, largest_query
        self.lock = Lock()  # of the models and the data, which are not made for several threads
        self.page = PAGE.read_bytes()
        self.hosts = {f"{name}:{self.server_port}" for name in (ADDRESS, "localhost")}


class _Refused(Exception):
    """An answer that is an error; its text is shown."""

    def __init__(self, status: HTTPStatus, told: str) -> None:
        super().__init__(told)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    server: SearchServer  # pyright: ignore[reportIncompatibleVariableOverride]
    protocol_version = "HTTP/1.1"
    timeout = PATIENCE

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def version_string(self) -> str:
        return "Collimate"  # and not of which versions of Python and its library

    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format, *args)

    def _answer(self, respond: Callable[[], tuple[str, bytes]]) -> None:
        try:
            self._check_sender()
            kind, body = respond()
        except _Refused as refused:
            self._send(refused.status, "application/json", _json({"error": str(refused)}))
        except (BrokenPipeError, ConnectionError, TimeoutError):
            self.close_connection = True
        except Exception:
            log.exception("A request could not be answered.")  # here and not there: traces tell of this machine
            told = "This could not be answered; the terminal of the server says why."
            self._send(HTTPStatus.INTERNAL_SERVER_ERROR, "application/json", _json({"error": told}))
        else:
            self._send(HTTPStatus.OK, kind, body)

    def _check_sender(self) -> None:
        if self.headers.get("Host") not in self.server.hosts:
            raise self._refused_unread(HTTPStatus.FORBIDDEN, "This page answers to 127.0.0.1 and localhost alone.")
        origin = self.headers.get("Origin")
        if origin is not None and origin not in {f"http://{host}" for host in self.server.hosts}:
            raise self._refused_unread(HTTPStatus.FORBIDDEN, "Another page asked for this.")

    def _get(self) -> tuple[str, bytes]:
        path = urlsplit(self.path).path
        if path == "/":
            return "text/html; charset=utf-8", self.server.page
        if path == "/about":
            return "application/json", _json(self._about())
        what, _, row = path.removeprefix("/").partition("/")
        if what in ("picture", "sound") and row.isdecimal() and len(row) < 19:
            return self._shown(what, int(row))
        raise _Refused(HTTPStatus.NOT_FOUND, "There is no such page.")

    def _post(self) -> tuple[str, bytes]:
        asked = urlsplit(self.path)
        body = self._body()
        if asked.path != "/search":
            raise _Refused(HTTPStatus.NOT_FOUND, "There is no such page.")
        options = parse_qs(asked.query)
        k = options.get("k", ["20"])[0]
        if not (k.isdecimal() and len(k) <= len(str(MOST)) and 0 < int(k) <= MOST):
            raise _Refused(HTTPStatus.BAD_REQUEST, f"k is a whole number from 1 to {MOST}.")
        among = options.get("among")
        try:
            with self.server.lock:
                if "name" in options:
                    hits = self.server.searcher.find_bytes(options["name"][0], body, int(k), among)
                else:
                    hits = self.server.searcher.find_text(_text_in(body), int(k), among)
        except (ValueError, TypeError) as error:
            raise _Refused(HTTPStatus.BAD_REQUEST, str(error)) from error
        return "application/json", _json({"hits": [self._described(hit) for hit in hits]})

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or len(length) > 18 or "Transfer-Encoding" in self.headers:
            raise self._refused_unread(HTTPStatus.LENGTH_REQUIRED, "A search says how long it is.")
        if int(length) > self.server.largest_query:
            told = f"A file to search by has at most {self.server.largest_query / 2**20:.3g} MiB."
            raise self._refused_unread(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, told)
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            raise ConnectionError("the request ended early")
        return body

    def _refused_unread(self, status: HTTPStatus, told: str) -> _Refused:
        """A refusal before the body was read: what is left of it must not be taken for another request."""
        self.close_connection = True
        return _Refused(status, told)

    def _about(self) -> dict[str, Any]:
        searcher = self.server.searcher
        counts = Counter[str]()
        for part in searcher.index.parts:
            counts[part.modality] += part.samples
        queries = searcher.space.modalities
        endings = sorted({f".{key}" for modality in queries if modality != "text" for key in extensions_of(modality)})
        return {"modalities": counts, "queries": queries, "endings": endings}

    def _described(self, hit: Hit) -> dict[str, Any]:
        found = {name: value for name, value in vars(hit).items() if name not in ("source", "place")}
        return found | {"source": hit.source.rpartition("/")[2]}  # where it lies on this machine is not the page's

    def _shown(self, what: str, row: int) -> tuple[str, bytes]:
        try:
            with self.server.lock:
                exhibit = self.server.searcher.index.exhibit(row)
        except IndexError as error:
            raise _Refused(HTTPStatus.NOT_FOUND, str(error)) from error
        except (OSError, ValueError, CorruptSample) as error:
            log.warning("Sample %d cannot be shown: %s", row, error)
            raise _Refused(HTTPStatus.NOT_FOUND, "This sample is not where it was.") from error
        if exhibit is None or (what == "sound" and exhibit.sound is None):
            raise _Refused(HTTPStatus.NOT_FOUND, f"This sample has no {what}.")
        if what == "sound":
            return exhibit.sound_type, exhibit.sound or b""
        return "image/jpeg", _jpeg(exhibit)

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        try:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            for name, value in HEADERS.items():
                self.send_header(name, value)
            if self.close_connection:
                self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(body)
        except (BrokenPipeError, ConnectionError, TimeoutError):
            self.close_connection = True


def _text_in(body: bytes) -> str:
    """The text of a search.

    Raises:
        ValueError: there is none.
    """
    try:
        text = json.loads(body)["text"]
    except (ValueError, KeyError, TypeError):
        text = None
    if not isinstance(text, str):
        raise ValueError('A search by a text is {"text": "..."}.')
    return text


def _jpeg(exhibit: Exhibit) -> bytes:
    picture = open_image(exhibit.picture).convert("RGB")
    picture.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=85)
    return file.getvalue()


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()
