"""The page in a real browser, where there is one: the variable `COLLIMATE_BROWSER` or a Chromium on the path."""

import os
import shutil
import subprocess
import threading
from urllib.parse import quote

import pytest

from collimate.search.server import SearchServer

BROWSER = os.environ.get("COLLIMATE_BROWSER") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on the path, nor in COLLIMATE_BROWSER")
def test_a_browser_shows_what_is_found(searcher, tmp_path):
    wanted = searcher.find_text("picture 3", 3)
    with SearchServer(searcher, 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        page = f"http://127.0.0.1:{server.server_port}/#{quote('picture 3')}"
        options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}", "--timeout=20000"]
        done = subprocess.run(
            [str(BROWSER), *options, "--virtual-time-budget=10000", "--dump-dom", page],
            capture_output=True,
            text=True,
            timeout=120,
        )
        server.shutdown()
        thread.join()
    assert "The index holds 7 of image, 7 of audio." in done.stdout, done.stderr[-2000:]
    assert done.stdout.count("<li>") == 14
    places = [done.stdout.index(f"{hit.key} · {hit.source.rpartition('/')[2]}") for hit in wanted]
    assert places == sorted(places)
    assert done.stdout.count("<audio") == 7
    assert 'src="/picture/0"' in done.stdout
