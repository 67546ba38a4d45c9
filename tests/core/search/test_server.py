"""The page answers to this machine alone, and tells of it no more than what is searched."""

import http.client
import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest
from PIL import Image

from collimate.search.server import HEADERS, SearchServer

LIMIT = 100_000


@pytest.fixture
def server(searcher) -> Iterator[SearchServer]:
    with SearchServer(searcher, 0, LIMIT) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def ask(server, method, path, body=None, **headers):
    """Status, headers and body of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def search(server, body, **options):
    path = f"/search?{urlencode(options, doseq=True)}"
    status, _, found = ask(server, "POST", path, body)
    return status, json.loads(found)


def test_the_page_needs_nothing_from_elsewhere(server):
    status, headers, body = ask(server, "GET", "/")
    assert status == 200
    assert b"<title>Collimate: search</title>" in body
    assert b"http://" not in body.replace(b"http://www.w3.org", b"")
    assert b"https://" not in body
    for name, value in HEADERS.items():
        assert headers[name] == value
    assert "Python" not in headers["Server"]


def test_about_says_what_there_is(server):
    about = json.loads(ask(server, "GET", "/about")[2])
    assert about["modalities"] == {"image": 7, "audio": 7}
    assert about["queries"] == ["image", "audio", "text"]
    assert {".png", ".wav"} <= set(about["endings"])


def test_search_by_text(server, searcher):
    status, found = search(server, json.dumps({"text": "picture 3"}), k=5)
    assert status == 200
    wanted = searcher.find_text("picture 3", 5)
    assert [hit["row"] for hit in found["hits"]] == [hit.row for hit in wanted]
    assert found["hits"][0].keys() == {"row", "score", "modality", "key", "source", "caption"}
    assert "/" not in found["hits"][0]["source"]


def test_search_by_an_uploaded_picture_and_sound(server, data):
    for modality, path in (("image", "photos/4.png"), ("audio", "sounds/2.wav")):
        body = (Path(data["image"]).parent / path).read_bytes()
        status, found = search(server, body, k=1, name=Path(path).name)
        assert status == 200
        assert (found["hits"][0]["modality"], found["hits"][0]["key"]) == (modality, Path(path).stem)
    status, found = search(server, body, k=20, name="a.wav", among=["image"])
    assert {hit["modality"] for hit in found["hits"]} == {"image"}


def test_what_is_found_can_be_seen_and_heard(server):
    status, headers, body = ask(server, "GET", "/picture/0")
    assert (status, headers["Content-Type"]) == (200, "image/jpeg")
    assert Image.open(io.BytesIO(body)).size == (40, 40)
    status, headers, body = ask(server, "GET", "/sound/7")
    assert (status, headers["Content-Type"], body[:4]) == (200, "audio/flac", b"fLaC")


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/picture/14", "no sample 14"),
        ("/picture/999999999999999999", "no sample"),
        ("/picture/-1", "no such page"),
        ("/picture/../../etc/passwd", "no such page"),
        ("/picture/%2e%2e%2f1", "no such page"),
        ("/picture/%C2%B2", "no such page"),
        ("/sound/0", "has no sound"),
        ("/page.html", "no such page"),
        ("//example.org/", "no such page"),
    ],
)
def test_unknown_rows_and_paths_are_refused(server, path, told):
    status, _, body = ask(server, "GET", path)
    assert status == 404
    assert told in json.loads(body)["error"]


def test_a_source_that_is_gone_is_told_without_its_place(server, searcher, monkeypatch):
    def gone(row):
        raise FileNotFoundError("/secret/place is gone")

    monkeypatch.setattr(searcher.index, "exhibit", gone)
    status, _, body = ask(server, "GET", "/picture/0")
    assert status == 404
    assert b"secret" not in body


@pytest.mark.parametrize("name", ["Host", "Origin"])
def test_other_hosts_and_pages_are_refused(server, name):
    own = f"localhost:{server.server_port}"
    good, bad = {"Host": (own, "evil.example"), "Origin": (f"http://{own}", "http://evil.example")}[name]
    assert ask(server, "GET", "/about", **{name: good})[0] == 200
    for request in (("GET", "/about", None), ("POST", "/search", json.dumps({"text": "a"}))):
        status, headers, body = ask(server, *request, **{name: bad})
        assert status == 403
        assert headers["Connection"] == "close"
        assert b"hits" not in body
        assert b"modalities" not in body


def test_only_this_machine_is_listened_to(server):
    assert server.server_address[0] == "127.0.0.1"


def test_too_large_a_query_is_refused_unread(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    connection.putrequest("POST", "/search?name=a.png")
    connection.putheader("Content-Length", str(LIMIT + 1))
    connection.endheaders()  # and nothing of the body is sent
    response = connection.getresponse()
    assert response.status == 413
    assert response.headers["Connection"] == "close"
    assert "at most 0.0954 MiB" in json.loads(response.read())["error"]
    connection.close()


def test_a_search_of_unknown_length_is_refused(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    connection.putrequest("POST", "/search")
    connection.endheaders()
    assert connection.getresponse().status == 411
    connection.close()


@pytest.mark.parametrize(
    ("body", "options", "told"),
    [
        ("no json", {}, "A search by a text"),
        (json.dumps({"text": 3}), {}, "A search by a text"),
        (json.dumps({"text": " "}), {}, "empty text"),
        (json.dumps({"text": "a"}), {"k": "0"}, "k is a whole number from 1"),
        (json.dumps({"text": "a"}), {"k": "x"}, "k is a whole number from 1"),
        (json.dumps({"text": "a"}), {"k": "9" * 40}, "k is a whole number from 1"),
        (json.dumps({"text": "a"}), {"k": "0000002009999"}, "k is a whole number from 1"),
        (json.dumps({"text": "a"}), {"among": "video"}, "holds image, audio, and no video"),
        ("x", {"name": "a.xyz"}, "no modality here"),
        ("x", {"name": "a.png"}, "not an image"),
        ("x", {"name": "../a.wav"}, ""),
    ],
)
def test_wrong_searches_are_told_what_is_wrong(server, body, options, told):
    status, found = search(server, body, **options)
    assert status == 400
    assert told in found["error"]
    assert "Traceback" not in found["error"]


def test_a_fault_is_answered_without_a_trace(server, searcher, monkeypatch, caplog):
    def fault(*_):
        raise RuntimeError("secret state")

    monkeypatch.setattr(searcher, "find_text", fault)
    status, found = search(server, json.dumps({"text": "a"}))
    assert status == 500
    assert "secret" not in found["error"]
    assert "secret state" in caplog.text


def test_a_taken_port_is_told(server, searcher):
    with pytest.raises(OSError, match=r"cannot be had .*--port"):
        SearchServer(searcher, server.server_port)
