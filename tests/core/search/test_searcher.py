"""Any modality finds any other, and a file tells by its name what it is."""

from pathlib import Path

import pytest
import soundfile
from PIL import Image

from collimate.checkpoints import save
from collimate.search import NotOneSpace, Searcher, SearchIndex, Space, open_searcher

from .pair import picture_text


def test_what_is_in_the_index_finds_itself_first(searcher, data):
    for modality, name in (("image", "photos/4.png"), ("audio", "sounds/2.wav")):
        best = searcher.find_file(Path(data["image"]).parent / name, k=3)[0]
        assert (best.modality, best.key) == (modality, Path(name).stem)
        assert best.score == pytest.approx(1, abs=1e-5)


def test_each_finds_each(searcher, data):
    picture = Image.open(Path(data["image"]) / "1.png")
    sound, rate = soundfile.read(Path(data["audio"]) / "1.wav", dtype="float32")
    assert {hit.modality for hit in searcher.find("image", picture, 4, ["audio"])} == {"audio"}
    assert {hit.modality for hit in searcher.find("audio", (sound, rate), 4, ["image"])} == {"image"}
    assert len(searcher.find_text("a red circle", 14)) == 14


def test_a_files_name_tells_its_modality(searcher):
    assert searcher.modality_of("bird.JPG") == "image"
    assert searcher.modality_of("bird.flac") == "audio"
    with pytest.raises(ValueError, match="is of no modality here"):
        searcher.modality_of("bird.xyz")


def test_wrong_queries_are_refused(searcher, data, tmp_path):
    with pytest.raises(FileNotFoundError, match="no file"):
        searcher.find_file(tmp_path / "none.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"broken\.png: not an image"):
        searcher.find_file(tmp_path / "broken.png")
    (tmp_path / "broken.wav").write_bytes(b"RIFF no sound")
    with pytest.raises(ValueError, match=r"broken\.wav|bytes"):
        searcher.find_file(tmp_path / "broken.wav")
    with pytest.raises(ValueError, match=r"4\.png is no audio"):
        searcher.find_bytes("4.png", b"", modality="audio")
    with pytest.raises(ValueError, match="empty text"):
        searcher.find_text(" ")


def test_a_file_of_another_name_goes_to_the_processor_as_a_path(searcher, data, tmp_path):
    """So records of several files are read, which know their parts by their own path."""
    path = tmp_path / "sound.data"
    path.write_bytes((Path(data["audio"]) / "3.wav").read_bytes())
    assert searcher.find_file(path, 1, modality="audio")[0].key == "3"


def test_an_index_opens_with_the_models_it_was_written_with(index_folder, checkpoints):
    assert open_searcher(index_folder, device="cpu").space.modalities == ("image", "audio", "text")
    assert open_searcher(index_folder, checkpoints[:1], "cpu").space.modalities == ("image", "text")


def test_an_index_and_other_models_are_refused(space, index_folder, tmp_path):
    save(picture_text(seed=5), tmp_path / "other")
    with pytest.raises(NotOneSpace, match="models whose texts have other vectors"):
        open_searcher(index_folder, [tmp_path / "other"], "cpu")


def test_a_tower_that_changed_since_is_refused(space, index_folder):
    clip = picture_text()
    clip.encoders["image"] = picture_text(seed=3).encoders["image"]  # and its texts are as they were
    with pytest.raises(NotOneSpace, match="retrained has changed since"):
        Searcher(Space({"retrained": clip}, "cpu"), SearchIndex(index_folder))
