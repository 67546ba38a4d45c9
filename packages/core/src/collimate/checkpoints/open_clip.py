"""Converters between open_clip's models (OpenAI's among them) and image-text methods.

open_clip keeps a projection inside each tower; here it belongs to the method. Nothing else differs but names.
"""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any

import open_clip
from open_clip.model import convert_to_custom_text_state_dict
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import QuickGELU
from torch import Tensor, nn

from collimate.checkpoints.files import CheckpointError, read_state_dict, tidy
from collimate.checkpoints.two_towers import ImageTextMethod, Rename, TwoTowers, objective_names, to_ours, to_theirs
from collimate.encoders import (
    Encoder,
    LinearProjection,
    MLPProjection,
    NoProjection,
    OpenClipImageEncoder,
    OpenClipResNetEncoder,
    OpenClipTextEncoder,
    Projection,
    TimmImageEncoder,
)
from collimate.encoders.open_clip import open_clip_config, pretrained_state_dict
from collimate.processing import ClipTokenizer, HuggingFaceTokenizer, ImageProcessor, Processor

Weights = Mapping[str, Tensor]


def read_open_clip(
    model: str | Mapping[str, Any] | nn.Module,
    checkpoint: str | PathLike[str] | Weights | None = None,
    image_processor: Processor | None = None,
    tokenizer: Processor | None = None,
) -> TwoTowers:
    """An open_clip model in parts.

    Args:
        model: a name such as `ViT-B-32`, a configuration as in open_clip's JSON files, or a model itself.
        checkpoint: weights: a state dict, a file, or, for a name, a tag such as `openai` (downloaded). None
            leaves a name's or configuration's model at random weights.
        image_processor: how pictures become input; that of the model's released weights if None.
        tokenizer: how texts become ids; the model's own if None.

    Raises:
        ValueError: the model has a part that Collimate cannot express.
        CheckpointError: the weights do not fit it, or cannot be read.
    """
    name = model if isinstance(model, str) else None
    tag = checkpoint if name and isinstance(checkpoint, str) and _released(name, checkpoint) else None
    if isinstance(model, nn.Module):
        config, weights = _config_of(model), dict(model.state_dict())
    else:
        config = open_clip_config(model) if isinstance(model, str) else dict(model)
        weights = None
    if name and tag:
        weights = pretrained_state_dict(name, tag)
        config["quick_gelu"] = config.get("quick_gelu", False) or bool(_released(name, tag).get("quick_gelu"))
    elif isinstance(checkpoint, Mapping):
        weights = tidy(dict(checkpoint))
    elif checkpoint is not None:
        weights = read_state_dict(checkpoint)
    config = {**config, **config.get("model_cfg", {})}  # the hub's open_clip_config.json has it one level down
    dim = config["embed_dim"]
    image_encoder, image_projection = _image_tower(config["vision_cfg"], dim, config.get("quick_gelu", False))
    text_encoder, text_projection = _text_tower(config["text_cfg"], dim, config.get("quick_gelu", False))
    if weights is not None:
        names = [*_image_names(image_encoder, image_projection), *_text_names(text_projection), *LOGITS, *LOCAL]
        weights = to_ours(_normal_form(weights), names)
    preprocessing = config.get("preprocess_cfg") or (_released(name, tag) if name else {})
    arguments = {
        "image_encoder": image_encoder,
        "text_encoder": text_encoder,
        "image_processor": image_processor or _image_processor(config["vision_cfg"], preprocessing),
        "tokenizer": tokenizer or _tokenizer(config["text_cfg"]),
        "embed_dim": dim,
        "image_projection": image_projection,
        "text_projection": text_projection,
    }
    return TwoTowers(arguments, weights)


def read_openai(checkpoint: str | PathLike[str] | Weights, text_heads: int | None = None) -> TwoTowers:
    """OpenAI's CLIP in parts: every size is read off the weights, as the official code does.

    Args:
        checkpoint: a state dict, or a file (also the TorchScript archives in half precision).
        text_heads: attention heads of the text tower; one for each 64 of its width if None.

    Raises:
        CheckpointError: these are no CLIP weights in OpenAI's layout.
    """
    weights = tidy(dict(checkpoint)) if isinstance(checkpoint, Mapping) else read_state_dict(checkpoint)
    try:
        return read_open_clip(_openai_config(weights, text_heads), weights)
    except KeyError as error:
        raise CheckpointError(f"These are no CLIP weights in OpenAI's layout: {error} is missing.") from error


def to_open_clip(method: ImageTextMethod) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """An image-text method as open_clip's model configuration and state dict.

    Raises:
        ValueError: it has a part that open_clip cannot express.
    """
    image, text = method.encoders["image"], method.encoders["text"]
    image_projection, text_projection = method.projections["image"], method.projections["text"]
    if not isinstance(text, OpenClipTextEncoder):
        raise ValueError(f"open_clip has no text tower like {type(text).__name__}.")
    if isinstance(text_projection, MLPProjection) or isinstance(image_projection, MLPProjection):
        raise ValueError("open_clip has no projection like MLPProjection.")
    quick_gelu = text.sizes["quick_gelu"]
    if isinstance(image, TimmImageEncoder):
        vision = _timm_config(image, image_projection)
    elif isinstance(image, OpenClipImageEncoder | OpenClipResNetEncoder):
        if isinstance(image, OpenClipImageEncoder) and image.sizes["quick_gelu"] != quick_gelu:
            raise ValueError("open_clip has one activation for both towers, but these have two.")
        vision = {key: value for key, value in image.sizes.items() if key != "quick_gelu"}
    else:
        raise ValueError(f"open_clip has no image tower like {type(image).__name__}.")
    kind = "none" if isinstance(text_projection, NoProjection) else "linear"
    projection = {"proj_type": kind, "proj_bias": _has_bias(text_projection)}
    weights = method.state_dict()
    config = {
        "embed_dim": text_projection.dim,
        "quick_gelu": quick_gelu,
        "vision_cfg": vision,
        "text_cfg": {key: value for key, value in text.sizes.items() if key != "quick_gelu"} | projection,
    }
    if "logit_bias" in weights:
        config |= {"init_logit_bias": float(weights["logit_bias"]), "custom_text": True}
    names = [*_image_names(image, image_projection), *_text_names(text_projection), *LOGITS]
    theirs = to_theirs(weights, names)
    if not config.get("custom_text"):  # open_clip's plain CLIP has no prefix on its text tower
        theirs = {key.removeprefix("text."): value for key, value in theirs.items()}
    return config, theirs


def weights_beside_open_clip(method: ImageTextMethod) -> dict[str, Tensor]:
    """The weights of a method, by its own names, that `to_open_clip` leaves out: those of its objective alone."""
    weights, known = method.state_dict(), {name.ours for name in LOGITS}
    return {name: weights[name] for name in objective_names(weights) if name not in known}


def preprocessing_to_open_clip(method: ImageTextMethod) -> dict[str, Any]:
    """A method's image processor as open_clip's `preprocess_cfg`.

    Raises:
        ValueError: open_clip has no such processor.
    """
    image = method.processors["image"]
    if not isinstance(image, ImageProcessor):
        raise ValueError(f"open_clip has no image processor like {type(image).__name__}.")
    return {
        "size": [image.size, image.size],
        "mode": "RGB",
        "mean": list(image.mean),
        "std": list(image.std),
        "interpolation": image.interpolation,
        "resize_mode": image.resize,
    }


LOGITS = (Rename("logit_scale", "logit_scale"), Rename("logit_bias", "logit_bias"))
LOCAL = (  # DreamLIP's, where its training code has them
    Rename("visual.proj2", "local_projection.linear.weight", transposed=True),
    Rename("logit_scale_local", "local_logit_scale"),
)


def _image_names(encoder: Any, projection: nn.Module) -> list[Rename]:
    head = "projections.image.linear."
    if isinstance(encoder, OpenClipImageEncoder):
        return [Rename("visual.", "encoders.image.tower."), Rename("visual.proj", head + "weight", transposed=True)]
    if isinstance(encoder, OpenClipResNetEncoder):
        return [Rename("visual.", "encoders.image.tower."), Rename("visual.attnpool.c_proj.", head)]
    names = [Rename("visual.trunk.", "encoders.image.model.")]
    if isinstance(projection, LinearProjection):
        # With a bias it is timm's own classifier, without one a layer that open_clip puts after it.
        classifier = encoder.model.default_cfg["classifier"]
        names.append(Rename(f"visual.trunk.{classifier}." if _has_bias(projection) else "visual.head.proj.", head))
    return names


def _text_names(projection: nn.Module) -> list[Rename]:
    names = [Rename("text.", "encoders.text.tower.")]
    if _has_bias(projection):
        return [*names, Rename("text.text_projection.", "projections.text.linear.")]
    return [*names, Rename("text.text_projection", "projections.text.linear.weight", transposed=True)]


def _has_bias(projection: nn.Module) -> bool:
    return isinstance(projection, LinearProjection) and projection.linear.bias is not None


def _normal_form(weights: Weights) -> dict[str, Tensor]:
    """One spelling of what open_clip's versions wrote in several."""
    normal = convert_to_custom_text_state_dict(dict(weights))
    for name in ("logit_scale", "logit_bias", "logit_scale_local"):
        if name in normal:
            normal[name] = normal[name].reshape(())
    return {name: value for name, value in normal.items() if not name.endswith(("attn_mask", "position_ids"))}


def _image_tower(config: Mapping[str, Any], dim: int, quick_gelu: bool) -> tuple[Encoder, Projection]:
    config = dict(config)
    if config.get("timm_model_name"):
        return _timm_tower(config, dim)
    if isinstance(config.get("layers"), list | tuple):
        resnet = OpenClipResNetEncoder(None, options=config)
        return resnet, LinearProjection(resnet.width, dim, bias=True)
    tower = OpenClipImageEncoder(quick_gelu=quick_gelu, options=config)
    return tower, LinearProjection(tower.width, dim)


def _timm_tower(config: Mapping[str, Any], dim: int) -> tuple[Encoder, Projection]:
    pool, kind = config.get("timm_pool", "avg"), config.get("timm_proj", "linear")
    if pool in ("abs_attn", "rot_attn") or kind == "mlp":
        raise ValueError(f"open_clip's own pooling or MLP head on a timm model ({pool}, {kind}) is not supported.")
    encoder = TimmImageEncoder(
        config["timm_model_name"],
        image_size=config.get("image_size"),
        patch_drop_rate=config.get("patch_dropout", 0.0),
        model_args={"global_pool": pool} if pool else None,
    )
    if kind == "none":
        return encoder, NoProjection(encoder.width)
    bias = kind != "linear" or config.get("timm_proj_bias", False)
    return encoder, LinearProjection(encoder.width, dim, bias)


def _text_tower(config: Mapping[str, Any], dim: int, quick_gelu: bool) -> tuple[Encoder, Projection]:
    encoder = OpenClipTextEncoder(quick_gelu=quick_gelu, options=dict(config))
    if config.get("proj_type", "linear") == "none":
        return encoder, NoProjection(encoder.width)
    return encoder, LinearProjection(encoder.width, dim, bias=config.get("proj_bias", False))


def _timm_config(encoder: TimmImageEncoder, projection: nn.Module) -> dict[str, Any]:
    arguments = encoder.config()["init_args"]
    further = dict(arguments.get("model_args") or {})
    pool = further.pop("global_pool", "")
    if further:
        raise ValueError(f"open_clip names timm models without further arguments, but this one has {further}.")
    made_for = encoder.model.default_cfg["input_size"][-1]
    size = encoder.image_size or made_for
    if size != made_for and getattr(encoder.model, "pos_embed", None) is not None:
        raise ValueError(
            f"open_clip builds {arguments['name']} for images of {made_for} pixels only, and the positions of this one "
            f"are for {size}. Export to `collimate` or `onnx`."
        )
    proj = "none" if isinstance(projection, NoProjection) else "" if _has_bias(projection) else "linear"
    return {
        "timm_model_name": arguments["name"],
        "image_size": size,
        "timm_pool": pool or (encoder.model.global_pool if proj != "linear" else ""),
        "timm_proj": proj,
        "patch_dropout": arguments.get("patch_drop_rate", 0.0),
    }


def _image_processor(vision: Mapping[str, Any], preprocessing: Mapping[str, Any]) -> ImageProcessor:
    size = vision.get("image_size", 224)
    given = {"mean": "mean", "std": "std", "interpolation": "interpolation", "resize_mode": "resize"}
    known = {ours: preprocessing[theirs] for theirs, ours in given.items() if preprocessing.get(theirs)}
    return ImageProcessor(size if isinstance(size, int) else size[0], **known)


def _released(name: str, tag: str | None) -> dict[str, Any]:
    """open_clip's entry for a model's released weights; those of the first tag if none is given."""
    tags = [tag] if tag else open_clip.list_pretrained_tags_by_model(name)
    return dict(open_clip.get_pretrained_cfg(name, tags[0]) or {}) if tags else {}


def _tokenizer(text: Mapping[str, Any]) -> Processor:
    length = text.get("context_length", 77)
    name, clean = text.get("hf_tokenizer_name"), (text.get("tokenizer_kwargs") or {}).get("clean")
    if not name:
        return ClipTokenizer(length)
    try:
        return HuggingFaceTokenizer(name, length, clean)
    except OSError as error:
        raise CheckpointError(
            f"The model's tokenizer {name!r} is not on this machine, and the hub does not give it. Pass "
            "tokenizer=HuggingFaceTokenizer(folder) with a copy of its files."
        ) from error


def _openai_config(weights: Weights, text_heads: int | None) -> dict[str, Any]:
    if "visual.layer1.0.conv1.weight" in weights:
        stages = [{key.split(".")[2] for key in weights if key.startswith(f"visual.layer{n}.")} for n in (1, 2, 3, 4)]
        vision: dict[str, Any] = {
            "layers": [len(blocks) for blocks in stages],
            "width": weights["visual.layer1.0.conv1.weight"].shape[0],
            "image_size": 32 * round((len(weights["visual.attnpool.positional_embedding"]) - 1) ** 0.5),
        }
    else:
        width, _, patch, _ = weights["visual.conv1.weight"].shape
        vision = {
            "layers": sum(key.startswith("visual.") and key.endswith(".attn.in_proj_weight") for key in weights),
            "width": width,
            "patch_size": patch,
            "image_size": patch * round((len(weights["visual.positional_embedding"]) - 1) ** 0.5),
        }
    vocabulary, text_width = weights["token_embedding.weight"].shape
    text = {
        "context_length": len(weights["positional_embedding"]),
        "vocab_size": vocabulary,
        "width": text_width,
        "heads": text_heads or text_width // 64,
        "layers": len({key.split(".")[2] for key in weights if key.startswith("transformer.resblocks.")}),
    }
    dim = weights["text_projection"].shape[1]
    return {"embed_dim": dim, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}


def _config_of(model: Any) -> dict[str, Any]:
    """The configuration of an open_clip model, read off its modules."""
    visual, text = model.visual, getattr(model, "text", model)
    if isinstance(visual, TimmModel):
        trunk: Any = visual.trunk
        bare = isinstance(trunk.get_classifier(), nn.Identity)
        vision: dict[str, Any] = {
            "timm_model_name": trunk.pretrained_cfg["architecture"],
            "image_size": visual.image_size[0],
            "timm_proj": "linear" if len(visual.head) else "none" if bare else "",
            "timm_pool": "" if len(visual.head) else trunk.global_pool,
        }
    elif isinstance(visual, ModifiedResNet):
        stages = (visual.layer1, visual.layer2, visual.layer3, visual.layer4)
        vision = {
            "layers": [len(stage) for stage in stages],
            "width": visual.bn3.num_features,
            "image_size": visual.image_size,
        }
    else:
        vision = {
            "image_size": visual.image_size[0],
            "patch_size": visual.patch_size[0],
            "width": visual.conv1.out_channels,
            "head_width": visual.transformer.resblocks[0].attn.head_dim,
            "no_ln_pre": isinstance(visual.ln_pre, nn.Identity),
            "pool_type": visual.pool_type,
            "final_ln_after_pool": visual.final_ln_after_pool,
            **_blocks_of(visual.transformer, visual.ln_post),
        }
    return {
        "embed_dim": _text_dim(text),
        "quick_gelu": isinstance(text.transformer.resblocks[0].mlp.gelu, QuickGELU),
        "vision_cfg": vision,
        "text_cfg": {
            "context_length": len(text.positional_embedding),
            "vocab_size": text.token_embedding.num_embeddings,
            "width": text.token_embedding.embedding_dim,
            "heads": text.transformer.resblocks[0].attn.num_heads,
            "no_causal_mask": text.attn_mask is None,
            "pool_type": model.text_pool_type if text is model else text.pool_type,
            "eos_id": model.text_eos_id if text is model else text.eos_id,
            "proj_type": "none" if text.text_projection is None else "linear",
            "proj_bias": getattr(text.text_projection, "bias", None) is not None,
            **_blocks_of(text.transformer, text.ln_final),
        },
    }


def _blocks_of(transformer: Any, norm: nn.LayerNorm) -> dict[str, Any]:
    mlp = transformer.resblocks[0].mlp
    fields: dict[str, Any] = {
        "layers": len(transformer.resblocks),
        "mlp_ratio": mlp.c_fc.out_features / mlp.c_fc.in_features,
        "norm_kwargs": {"eps": norm.eps},
    }
    if getattr(mlp.gelu, "approximate", "none") != "none":
        fields["act_kwargs"] = {"approximate": mlp.gelu.approximate}
    return fields


def _text_dim(text: Any) -> int:
    projection = text.text_projection
    if projection is None:
        return text.token_embedding.embedding_dim
    return projection.out_features if isinstance(projection, nn.Linear) else projection.shape[1]
