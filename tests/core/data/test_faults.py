"""Damaged, hostile and absurd data: skipped, counted with a reason, and fatal above a set rate."""

import io
import os
import struct
import zlib

import pytest
import torch
from PIL import Image

from collimate.data import (
    CorruptSample,
    EvalLoader,
    ImageAugmentation,
    Mixture,
    Preparation,
    ShardSource,
    TableSource,
    TooManyCorruptSamples,
    TrainingPreparation,
    TrainLoader,
)
from collimate.data.decoding import MAX_TEXT
from collimate.data.shards import BadShards


def png_that_claims(width: int, height: int) -> bytes:
    """A PNG of some bytes whose header claims any size: a decompression bomb."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def flat(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


PICTURES = {
    "empty": (lambda jpeg: b"", "empty file"),
    "truncated": (lambda jpeg: jpeg[: len(jpeg) // 2], "truncated file"),
    "header only": (lambda jpeg: jpeg[:30], "damaged image|not an image|truncated file"),
    "text": (lambda jpeg: b"<html>not found</html>", "not an image"),
    "zeros": (lambda jpeg: bytes(5000), "not an image"),
    "bomb": (lambda jpeg: png_that_claims(60_000, 60_000), "decompression bomb"),
    "small bomb": (lambda jpeg: png_that_claims(10_000, 10_000), "decompression bomb"),
    "lying header": (lambda jpeg: png_that_claims(3000, 3000), "truncated file|undecodable image"),
    "one pixel": (lambda jpeg: flat(1, 1), "absurd image size"),
    "rule": (lambda jpeg: flat(900, 4), "absurd image size"),
}
CAPTIONS = {
    "empty": (b"", "empty file"),
    "blank": (b" \n\t", "empty text"),
    "not UTF-8": ("größer".encode("latin-1"), "text not UTF-8"),
    "10 MB": (b"a cat " * (10 * 2**20 // 6), "text too long"),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("kind", PICTURES)
def test_pictures(kind, jpeg, processors):
    make, reason = PICTURES[kind]
    sample = {"__key__": "000123", "__url__": "shards/7.tar", "jpg": make(jpeg(1, (200, 150))), "txt": b"fine"}
    augmented = TrainingPreparation(processors, augmentations={"image": ImageAugmentation()})
    for preparation in (Preparation(processors), augmented):
        with pytest.raises(CorruptSample, match=rf"shards/7\.tar: 000123.*({reason})"):
            preparation(sample)


@pytest.mark.parametrize("kind", CAPTIONS)
def test_captions(kind, jpeg, processors):
    data, reason = CAPTIONS[kind]
    with pytest.raises(CorruptSample, match=f"a: b.txt: {reason}"):
        Preparation(processors)({"__key__": "b", "__source__": "a", "jpg": jpeg(0), "txt": data})


def test_a_missing_caption(jpeg, processors):
    with pytest.raises(CorruptSample, match=r"no txt/captions\.json \(it has jpg\)"):
        Preparation(processors)({"__key__": "b", "jpg": jpeg(0)})


def test_long_captions_below_the_bound_are_cut_by_the_tokenizer(jpeg, processors):
    row = Preparation(processors)({"jpg": jpeg(0), "txt": b"word " * (MAX_TEXT // 5)})
    assert row["text"].shape == (processors["text"].context_length,)
    assert row["text"][-1] == processors["text"].end_id


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_run_survives_all_of_them_and_counts_each(shards, jpeg, processors):
    damaged = {20 * place + 3: make(jpeg(1, (200, 150))) for place, (make, _) in enumerate(PICTURES.values())}
    source = ShardSource(shards(150, 150, replace=damaged))
    loader = TrainLoader(Mixture([source]), TrainingPreparation(processors), 10, num_workers=2, max_corrupt_rate=0.05)
    seen = [next(loader) for _ in range(30)]
    loader.close()
    assert all(batch["image"].shape == (10, 3, 16, 16) for batch in seen)
    assert torch.equal(torch.cat([batch["position"] for batch in seen]), torch.arange(300))
    assert sum(loader.corrupt.values()) == len(PICTURES)
    evaluation = EvalLoader(source, processors, 32, num_workers=2, max_corrupt_rate=0.05)
    valid = torch.cat([batch["index"][batch["valid"]] for batch in evaluation])
    assert set(valid.tolist()) == set(range(300)) - damaged.keys()


def test_a_run_stops_above_the_rate(shards, processors):
    source = ShardSource(shards(60, replace=dict.fromkeys(range(0, 60, 3), b"")))
    loader = TrainLoader(Mixture([source]), TrainingPreparation(processors), 10)
    with pytest.raises(TooManyCorruptSamples, match=r"(?s)more than max_corrupt_rate=0\.01.*x empty file"):
        [next(loader) for _ in range(6)]


# Shards ---------------------------------------------------------------------------------------------------------


def test_truncated_shards_serve_what_is_whole(shards):
    whole, cut = shards(10, 10)
    os.truncate(cut, cut.stat().st_size // 2)
    with pytest.raises(BadShards, match=r"(?s)1 of 2 shards are bad:.*000001\.tar: truncated.*max_bad_rate=0\.01"):
        ShardSource([whole, cut])
    source = ShardSource([whole, cut], max_bad_rate=0.5)
    assert source.bad == {str(cut): "truncated"}
    assert 10 < len(source) < 20
    for place in range(len(source)):
        assert set(source.read(place)) >= {"jpg", "txt"}


@pytest.mark.parametrize("missing", [1, 512, 700, 1024, 1300, 10_000, 10_240, 10_241])
def test_every_cut_is_noticed(shards, missing):
    (path,) = shards(4)
    size = path.stat().st_size
    os.truncate(path, size - missing)
    source = ShardSource(path, max_bad_rate=1.0)
    end = 4 * 3 * 1024  # each member takes a header and, being small, a block or two; then zeros follow
    assert source.bad or size - missing > end
    for place in range(len(source)):
        source.read(place)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: path.unlink(), "missing"),
        (lambda path: os.truncate(path, 0), "empty file"),
        (lambda path: path.write_bytes(b"<html>" * 1000), "no tar file"),
        (lambda path: path.write_bytes(bytes(100)), "no tar file|no samples|truncated"),
        (lambda path: path.write_bytes(bytes(10_240)), "no samples"),
        (lambda path: os.truncate(path, 300), "no tar file"),
    ],
)
def test_shards_of_which_nothing_can_be_read(shards, damage, reason):
    good, bad = shards(5, 5)
    damage(bad)
    with pytest.raises(BadShards, match=reason):
        ShardSource([good, bad])
    assert len(ShardSource([good, bad], max_bad_rate=0.5)) == 5


@pytest.mark.parametrize("name", ["../../escaped.jpg", "/tmp/absolute.jpg", "a/../../b.jpg", "..jpg/../x.jpg"])
def test_members_that_would_lie_outside_are_refused_and_never_written(tmp_path, write_tar, jpeg, name):
    path = write_tar(tmp_path / "deep" / "folder" / "a.tar", [("fine.jpg", jpeg(0)), (name, jpeg(1))])
    source = ShardSource(path)
    source.read(0)
    with pytest.raises(CorruptSample, match="unsafe member name"):
        source.read(1)
    assert {found.name for found in tmp_path.rglob("*.*")} == {"a.tar", "a.tar.index.npz"}


def test_links_in_tars_are_not_followed(tmp_path):
    import tarfile

    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for kind, name in ((tarfile.SYMTYPE, "s.txt"), (tarfile.LNKTYPE, "h.txt")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        tar.addfile(tarfile.TarInfo("real.txt"))
    source = ShardSource(tmp_path / "a.tar")
    assert [source.read(place)["__key__"] for place in range(len(source))] == ["real"]


def test_two_members_of_one_name(tmp_path, write_tar):
    source = ShardSource(write_tar(tmp_path / "a.tar", [("a.txt", b"1"), ("a.txt", b"2"), ("b.txt", b"3")]))
    with pytest.raises(CorruptSample, match="two members of one name"):
        source.read(0)
    assert source.read(1)["txt"] == b"3"


# Tables ---------------------------------------------------------------------------------------------------------


def test_a_caption_that_is_no_utf8_spoils_its_own_row_only(tmp_path, processors):
    (tmp_path / "t.csv").write_bytes(b"caption\nfine\n" + "größer\n".encode("latin-1") + b"fine too\n")
    (tmp_path / "t.jsonl").write_bytes(b'{"caption": "fine"}\n{"caption": "gr\xf6\xdfer"}\n{"caption": "fine"}\n')
    preparation = Preparation({"text": processors["text"]})
    for name in ("t.csv", "t.jsonl"):
        source = TableSource(tmp_path / name)
        preparation(source.read(0))
        preparation(source.read(2))
        with pytest.raises(CorruptSample, match="text not UTF-8"):
            preparation(source.read(1))
