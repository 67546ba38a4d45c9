"""The verbs `collimate search check`, `index`, `find`, `retrieval` and `serve`.

What is heavy is imported when they run.
"""

from __future__ import annotations

from typing import Any, Unpack

from collimate.evaluation.options import Measured, Reading
from collimate.search.hit import Hit

_LONGEST = 80  # ours: characters of a caption in a table


def check(checkpoints: list[str]) -> None:
    """Tell whether trained models share a space, so that anything of one can be found by anything of another.

    Args:
        checkpoints: their model folders; two or more.
    """
    from collimate.console import say
    from collimate.search import open_space

    space = open_space(checkpoints, "cpu")
    for modality in space.modalities:
        say(f"{modality}: {space.names[modality]}")
    say(f"One space ({space.hash}): text tower, projection and tokenizer are equal.")


def index(
    checkpoints: list[str],
    data: dict[str, str],
    output: str,
    kind: str = "Flat",
    samples_per_file: int = 10_000,
    **options: Unpack[Reading],
) -> None:
    """Embed data of several modalities, each by its model, and write an index of them.

    Run the same command again after an interruption: finished files are kept. Other data are added to what is there.

    Args:
        checkpoints: the model folders; they must share a space (see `collimate search check`).
        data: modality -> what to index (see `collimate data inspect`): `{"image": "photos/", "audio": "sounds.csv"}`.
        output: the folder of the index.
        kind: of faiss index: `Flat` is exact; others, such as `HNSW32`, are faster or smaller where there are millions.
        samples_per_file: so many are held in memory before they are written.
    """
    from collimate.console import say
    from collimate.search import open_space, write_index
    from collimate.search.index import require_faiss

    require_faiss()  # before the models are loaded
    rest: dict[str, Any] = {**options}
    space = open_space(checkpoints, rest.pop("device", "auto"))
    parts = write_index(
        space,
        data,
        output,
        kind,
        samples_per_file,
        done=lambda part: say(
            f"{part.modality}: {part.samples} samples of {part.source}"
            + (f"; {part.skipped} more are corrupt or lack it, and were left out" if part.skipped else "")
        ),
        **rest,
    )
    say(f"Index of {sum(part.samples for part in parts)} samples: {output}/")


def find(
    index: str,
    text: str | None = None,
    file: str | None = None,
    modality: str | None = None,
    k: int = 10,
    among: list[str] | None = None,
    checkpoints: list[str] | None = None,
    device: str = "auto",
) -> None:
    """Search an index by a text, or by a file of any modality.

    Args:
        index: the folder that `collimate search index` wrote.
        text: the query; or
        file: a picture, a sound, a video, an ECG, ... as the query.
        modality: what the file is, where its ending does not tell.
        k: how many samples to find.
        among: the modalities that may be found, `[audio, video]`; all of the index unless given.
        checkpoints: where the models lie, if no longer where they lay when the index was written.
        device: `auto` is the first GPU where there is one, else the CPU.
    """
    from rich import get_console

    from collimate.search import open_searcher

    if (text is None) == (file is None):
        raise ValueError("Search by one thing: give --text or --file.")
    searcher = open_searcher(index, checkpoints, device)
    if text is not None:
        hits = searcher.find_text(text, k, among)
    else:
        hits = searcher.find_file(str(file), k, among, modality)
    get_console().print(_table(hits))


def retrieval(
    checkpoints: list[str],
    data: dict[str, str],
    output: str = "runs/join",
    **options: Unpack[Measured],
) -> None:
    """Rank one modality by another, encoded by models that never met in training; recalls beside their chance.

    Args:
        checkpoints: the model folders; they must share a space (see `collimate search check`).
        data: two modalities with their data, whose samples at one place are of one scene, one patient, ...
        output: the folder of report.html and report.json.
    """
    from collimate.data import open_source
    from collimate.evaluation.commands import publish
    from collimate.search import evaluate_between_models, open_space

    if len(data) != 2:
        raise ValueError(f"Two modalities are ranked by each other, not {len(data)}.")
    opened = {source: open_source(source) for source in data.values()}
    one, other = ((modality, opened[source]) for modality, source in data.items())
    rest: dict[str, Any] = {**options}
    space = open_space(checkpoints, rest.pop("device", "auto"))
    found = evaluate_between_models(space, one, other, **rest)
    publish(found, " and ".join(checkpoints), output)


def serve(
    index: str, port: int = 8377, checkpoints: list[str] | None = None, device: str = "auto", max_megabytes: int = 32
) -> None:
    """Search an index on a page of this machine's browser, by a text or by a file. Ctrl-C ends it.

    Args:
        index: the folder that `collimate search index` wrote.
        port: of this machine alone (127.0.0.1); 0 takes a free one.
        checkpoints: where the models lie, if no longer where they lay when the index was written.
        device: `auto` is the first GPU where there is one, else the CPU.
        max_megabytes: larger files are refused as queries.
    """
    from collimate.search import open_searcher
    from collimate.search import serve as run

    run(open_searcher(index, checkpoints, device), port, max_megabytes * 2**20)


def _table(hits: list[Hit]) -> Any:
    from rich.markup import escape
    from rich.table import Table

    table = Table("", "score", "modality", "key", "caption", "source")
    for number, hit in enumerate(hits, 1):
        caption = hit.caption if len(hit.caption) <= _LONGEST else f"{hit.caption[: _LONGEST - 3]}..."
        row = (str(number), f"{hit.score:.3f}", hit.modality, hit.key, caption, hit.source)
        table.add_row(*map(escape, row))
    return table
