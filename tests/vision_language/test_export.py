"""Export: every format is read again and compared; what a format cannot say is refused in words."""

import pytest
import torch

from collimate.checkpoints import CheckpointError, export, save
from collimate.checkpoints import commands as command_module
from collimate.encoders import Frozen, LoRA, OpenClipTextEncoder


@pytest.mark.parametrize("format", ["collimate", "open_clip", "transformers"])
def test_formats_agree_with_the_model(make_clip, tmp_path, format):
    differences = export(make_clip(), tmp_path / "out", format)
    assert differences.keys() == {"image", "text"}
    assert max(differences.values()) < 1e-5


def test_siglip_to_transformers(make_siglip, tmp_path):
    assert max(export(make_siglip(), tmp_path / "out", "transformers").values()) < 1e-5


def test_onnx_runs_at_any_batch_size(make_clip, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    method = make_clip()
    assert max(export(method, tmp_path / "out", "onnx").values()) < 1e-5
    session = onnxruntime.InferenceSession(tmp_path / "out" / "text.onnx")
    ids = method.processors["text"].batch(["a dog", "", "two cats", "rain", "a"])
    features = torch.from_numpy(session.run(None, {"text": ids.numpy()})[0])
    torch.testing.assert_close(features, method.encode("text", ids).pooled, rtol=1e-4, atol=1e-5)


def test_what_a_format_cannot_express_is_said(make_clip, make_siglip, tmp_path):
    from collimate.encoders import TimmImageEncoder

    convnext = make_clip(image_encoder=TimmImageEncoder("test_convnext"))
    with pytest.raises(ValueError, match=r"neither has an image tower like test_convnext.*open_clip"):
        export(convnext, tmp_path / "out", "transformers")
    with pytest.raises(ValueError, match="without further arguments"):
        export(make_siglip(), tmp_path / "out", "open_clip")
    with pytest.raises(ValueError, match="no format 'gguf'"):
        export(convnext, tmp_path / "out", "gguf")
    with pytest.raises(ValueError, match="takes a whole method"):
        export(convnext.encoders["text"], tmp_path / "out", "onnx")
    assert list(tmp_path.iterdir()) == []


def test_updates_are_merged_and_frozen_towers_unwrapped(make_clip, tmp_path):
    pytest.importorskip("peft")
    towers = make_clip().encoders
    adapted = LoRA(towers["image"])
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    method = make_clip(image_encoder=adapted, text_encoder=Frozen(towers["text"]))
    assert max(export(method, tmp_path / "out", "open_clip").values()) < 1e-5
    assert isinstance(method.encoders["image"], LoRA)


def test_an_export_that_computes_something_else_is_not_kept(make_clip, tmp_path, monkeypatch):
    import collimate.checkpoints.open_clip as converter

    right = converter.to_open_clip

    def wrong(method):
        config, weights = right(method)
        return config | {"quick_gelu": True}, weights

    monkeypatch.setattr(converter, "to_open_clip", wrong)
    with pytest.raises(CheckpointError, match="computes something else"):
        export(make_clip(), tmp_path / "out", "open_clip")
    assert list(tmp_path.iterdir()) == []


def test_an_encoder_alone(tmp_path):
    differences = export(OpenClipTextEncoder(width=32, heads=2, layers=1), tmp_path / "out", "collimate")
    assert differences == {"input": 0.0}


def test_the_command(make_clip, tmp_path, capsys):
    save(make_clip(), tmp_path / "model")
    command_module.export(str(tmp_path / "model"), str(tmp_path / "out"), "open_clip")
    assert (tmp_path / "out" / "open_clip_model.safetensors").exists()
    assert "read again and compared" in capsys.readouterr().out
