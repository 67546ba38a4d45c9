"""The verbs of `collimate search`, as a user types them, on models of random weights."""

import json
import shutil
import sys
import threading
import urllib.request
from pathlib import Path

import pytest

from collimate import cli


def run(*words: str) -> None:
    cli.main(["search", *words])


def test_from_models_to_answers(checkpoints, data, tmp_path, capsys):
    models, output = json.dumps(checkpoints), str(tmp_path / "index")
    run("check", "--checkpoints", models)
    told = capsys.readouterr().out
    assert f"image: {checkpoints[0]}" in told
    assert f"audio: {checkpoints[1]}" in told
    run("index", "--checkpoints", models, "--data", json.dumps(data), "--output", output, "--device", "cpu")
    assert f"Index of 14 samples: {output}/" in capsys.readouterr().out
    picture = str(Path(data["image"]) / "4.png")
    run("find", "--index", output, "--file", picture, "--k", "1", "--device", "cpu")
    assert "picture 4" in capsys.readouterr().out
    run("find", "--index", output, "--text", "a bell", "--among", "[audio]", "--k", "2", "--device", "cpu")
    found = capsys.readouterr().out
    assert found.count("audio") >= 2
    assert "image" not in found


def test_retrieval_between_models_counts_chance(checkpoints, data, tmp_path, capsys):
    output = tmp_path / "report"
    words = ("--device", "cpu", "--resamples", "5", "--output", str(output))
    run("retrieval", "--checkpoints", json.dumps(checkpoints), "--data", json.dumps(data), *words)
    assert "image_retrieval_recall@5" in capsys.readouterr().out
    report = json.loads((output / "report.json").read_text())["Retrieval"]
    assert report["protocol"]["samples"] == 7
    assert report["protocol"]["chance"] == {"recall@1": 1 / 7, "recall@5": 5 / 7, "recall@10": 1.0}
    assert report["protocol"]["models"] == checkpoints


def test_what_is_no_pair_is_refused(checkpoints, data, tmp_path, capsys):
    fewer = tmp_path / "fewer"
    fewer.mkdir()
    for number in range(2):
        shutil.copy(Path(data["audio"]) / f"{number}.wav", fewer)
    for given, told in (({"image": data["image"]}, "not 1"), ({**data, "audio": str(fewer)}, "they are no pairs")):
        with pytest.raises(SystemExit):
            run("retrieval", "--checkpoints", json.dumps(checkpoints), "--data", json.dumps(given), "--device", "cpu")
        assert told in capsys.readouterr().err


def test_search_is_by_one_thing(index_folder, capsys):
    with pytest.raises(SystemExit):
        run("find", "--index", str(index_folder))
    assert "give --text or --file" in capsys.readouterr().err


def test_without_faiss_the_extra_is_named_before_models_are_loaded(checkpoints, data, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(SystemExit):
        run("index", "--checkpoints", '["none"]', "--data", json.dumps(data), "--output", str(tmp_path))
    assert "collimate[index]" in capsys.readouterr().err


def test_serve_ends_on_ctrl_c(index_folder, capsys, monkeypatch):
    from collimate.search.server import SearchServer

    asked = {}
    original = SearchServer.serve_forever

    def interrupted(server, *_):
        def ask():
            with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/about", timeout=30) as answer:
                asked.update(json.loads(answer.read()))
            server.shutdown()

        thread = threading.Thread(target=ask)
        thread.start()
        original(server, 0.01)
        thread.join()
        raise KeyboardInterrupt

    monkeypatch.setattr(SearchServer, "serve_forever", interrupted)
    run("serve", "--index", str(index_folder), "--port", "0", "--device", "cpu")
    told = capsys.readouterr().out
    assert "Search 14 samples: http://127.0.0.1:" in told
    assert "Stopped." in told
    assert asked["modalities"] == {"image": 7, "audio": 7}
