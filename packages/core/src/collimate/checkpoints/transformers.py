"""Converters between the CLIP and SigLIP models of Hugging Face transformers and image-text methods.

CLIP's towers are open_clip's here; SigLIP's are timm's vision transformer, pooled by attention, and open_clip's
text transformer without causal mask. Needs the extra `collimate[huggingface]`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from timm.layers import GELUTanh
from torch import Tensor, nn

from collimate.checkpoints.files import CheckpointError
from collimate.checkpoints.two_towers import ImageTextMethod, Rename, TwoTowers, to_ours, to_theirs
from collimate.encoders import (
    Encoder,
    LinearProjection,
    NoProjection,
    OpenClipImageEncoder,
    OpenClipTextEncoder,
    TimmImageEncoder,
)
from collimate.processing import ClipTokenizer, HuggingFaceTokenizer, ImageProcessor, Processor

SIGLIP_TOWER = "vit_base_patch16_siglip_224"  # timm's name of the architecture; sizes are given beside it
RESAMPLING = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers, which transformers writes

OPEN_CLIP_BLOCK = {
    "layer_norm1.": "ln_1.",
    "self_attn.in_proj.weight": "attn.in_proj_weight",
    "self_attn.in_proj.bias": "attn.in_proj_bias",
    "self_attn.out_proj.": "attn.out_proj.",
    "layer_norm2.": "ln_2.",
    "mlp.fc1.": "mlp.c_fc.",
    "mlp.fc2.": "mlp.c_proj.",
}
TIMM_BLOCK = {
    "layer_norm1.": "norm1.",
    "self_attn.in_proj.": "attn.qkv.",
    "self_attn.out_proj.": "attn.proj.",
    "layer_norm2.": "norm2.",
    "mlp.fc1.": "mlp.fc1.",
    "mlp.fc2.": "mlp.fc2.",
}
LOGITS = (Rename("logit_scale", "logit_scale"), Rename("logit_bias", "logit_bias"))


def read_transformers(
    model: str | PathLike[str] | nn.Module,
    image_processor: Processor | None = None,
    tokenizer: Processor | None = None,
) -> TwoTowers:
    """A CLIPModel or SiglipModel in parts.

    Args:
        model: a folder that transformers wrote, or a hub id, or a model itself.
        image_processor: how pictures become input; what the folder says if None.
        tokenizer: how texts become ids; the folder's tokenizer if None.

    Raises:
        ValueError: it is neither a CLIP nor a SigLIP model.
        CheckpointError: nothing says how its inputs are made, or its weights do not fit.
    """
    network: Any = model
    if not isinstance(model, nn.Module):
        from transformers import AutoModel

        network = AutoModel.from_pretrained(model, dtype=torch.float32)
        image_processor = image_processor or _image_processor(Path(model))
        tokenizer = tokenizer or HuggingFaceTokenizer(str(model), network.config.text_config.max_position_embeddings)
    config = network.config
    if config.model_type not in ("clip", "siglip"):
        raise ValueError(f"A {config.model_type} model of transformers is neither CLIP nor SigLIP.")
    if config.model_type == "clip" and config.text_config.vocab_size == 49408:
        tokenizer = tokenizer or ClipTokenizer(config.text_config.max_position_embeddings)
    if image_processor is None or tokenizer is None:
        raise CheckpointError("Nothing says how inputs are made: pass image_processor and tokenizer.")
    arguments = _clip_towers(config) if config.model_type == "clip" else _siglip_towers(config)
    names = _names(config.model_type, _depth(arguments["image_encoder"]), _depth(arguments["text_encoder"]))
    weights = to_ours(_fused(dict(network.state_dict())), names)
    return TwoTowers({**arguments, "image_processor": image_processor, "tokenizer": tokenizer}, weights)


def to_transformers(method: ImageTextMethod) -> Any:
    """An image-text method as a CLIPModel or a SiglipModel, in evaluation mode.

    Raises:
        ValueError: transformers' two models cannot express it.
    """
    from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

    image, text = method.encoders["image"], method.encoders["text"]
    if not isinstance(text, OpenClipTextEncoder):
        raise ValueError(f"transformers' CLIP and SigLIP have no text tower like {type(text).__name__}.")
    family: Any
    if isinstance(image, OpenClipImageEncoder):
        kind, config, family = "clip", CLIPConfig(**_clip_config(method, image, text)), CLIPModel
    elif isinstance(image, TimmImageEncoder) and hasattr(image.model, "attn_pool"):
        kind, config, family = "siglip", SiglipConfig(**_siglip_config(method, image, text)), SiglipModel
    else:
        raise ValueError(
            f"transformers' CLIP has open_clip's vision transformer and its SigLIP a timm one pooled by attention; "
            f"neither has an image tower like {_tower_name(image)}. Export to `open_clip` or `onnx` instead."
        )
    try:
        theirs = _separate(to_theirs(method.state_dict(), _names(kind, _depth(image), _depth(text))))
        model = family(config)
        model.load_state_dict(theirs)
    except (CheckpointError, RuntimeError) as error:
        raise ValueError(f"transformers' {family.__name__} cannot express this model. {error}") from error
    return model.eval()


def processors_to_transformers(method: ImageTextMethod, folder: Path) -> None:
    """Write the method's image processor and tokenizer as transformers does.

    Raises:
        ValueError: transformers has no such processor.
    """
    from transformers import CLIPImageProcessor, CLIPTokenizer, SiglipImageProcessor

    image, tokenizer = method.processors["image"], method.processors["text"]
    if not isinstance(image, ImageProcessor):
        raise ValueError(f"transformers has no image processor like {type(image).__name__}.")
    resample = {name: number for number, name in RESAMPLING.items()}[image.interpolation]
    common = {"image_mean": list(image.mean), "image_std": list(image.std), "resample": resample}
    side = {"height": image.size, "width": image.size}
    if image.resize == "longest":
        raise ValueError("transformers has no image processor that brings the longer side to size and pads.")
    if image.resize == "squash":
        SiglipImageProcessor(size=side, **common).save_pretrained(folder)
    else:
        CLIPImageProcessor(size={"shortest_edge": image.size}, crop_size=side, **common).save_pretrained(folder)
    if isinstance(tokenizer, ClipTokenizer):
        vocabulary, merges = tokenizer.vocabulary()
        writer: Any = CLIPTokenizer
        length = tokenizer.context_length
        writer(vocab=vocabulary, merges=merges, model_max_length=length).save_pretrained(folder)
    else:
        tokenizer.save_files(folder)


def _clip_towers(config: Any) -> dict[str, Any]:
    vision, text = config.vision_config, config.text_config
    image_encoder = OpenClipImageEncoder(
        image_size=vision.image_size,
        patch_size=vision.patch_size,
        width=vision.hidden_size,
        layers=vision.num_hidden_layers,
        head_width=vision.hidden_size // vision.num_attention_heads,
        mlp_ratio=vision.intermediate_size / vision.hidden_size,
        **_open_clip_activation(vision),
    )
    # Configurations of before transformers 4.31 have an end token of 2, and mean the largest id.
    pooling = {"pool_type": "argmax"} if text.eos_token_id == 2 else {"pool_type": "eos", "eos_id": text.eos_token_id}
    return {
        "image_encoder": image_encoder,
        "text_encoder": _text_tower(text, **pooling),
        "embed_dim": config.projection_dim,
    }


def _siglip_towers(config: Any) -> dict[str, Any]:
    vision, text = config.vision_config, config.text_config
    image_encoder = TimmImageEncoder(
        SIGLIP_TOWER,
        image_size=vision.image_size,
        model_args={
            "patch_size": vision.patch_size,
            "embed_dim": vision.hidden_size,
            "depth": vision.num_hidden_layers,
            "num_heads": vision.num_attention_heads,
            "mlp_ratio": vision.intermediate_size / vision.hidden_size,
            "act_layer": {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh"}[vision.hidden_act],
        },
    )
    text_encoder = _text_tower(text, pool_type="last", no_causal_mask=True)
    dim = getattr(text, "projection_size", None) or text.hidden_size
    return {
        "image_encoder": image_encoder,
        "text_encoder": text_encoder,
        "embed_dim": dim,
        "image_projection": NoProjection(image_encoder.width),
        "text_projection": LinearProjection(text_encoder.width, dim, bias=True),
    }


def _text_tower(config: Any, **arguments: Any) -> OpenClipTextEncoder:
    return OpenClipTextEncoder(
        context_length=config.max_position_embeddings,
        vocab_size=config.vocab_size,
        width=config.hidden_size,
        heads=config.num_attention_heads,
        layers=config.num_hidden_layers,
        mlp_ratio=config.intermediate_size / config.hidden_size,
        **_open_clip_activation(config),
        **arguments,
    )


def _open_clip_activation(config: Any) -> dict[str, Any]:
    options: dict[str, Any] = {"norm_kwargs": {"eps": config.layer_norm_eps}}
    if config.hidden_act == "gelu_pytorch_tanh":
        options["act_kwargs"] = {"approximate": "tanh"}
    elif config.hidden_act not in ("gelu", "quick_gelu"):
        raise ValueError(f"The activation {config.hidden_act!r} is not supported.")
    return {"quick_gelu": config.hidden_act == "quick_gelu", "options": options}


def _clip_config(method: ImageTextMethod, image: OpenClipImageEncoder, text: OpenClipTextEncoder) -> dict[str, Any]:
    causal = text.tower.attn_mask is not None and text.sizes["pool_type"] in ("argmax", "eos")
    plain = image.sizes["pool_type"] == "tok" and not image.sizes["final_ln_after_pool"]
    if not (causal and plain):
        raise ValueError("transformers' CLIP has a class token, a causal text tower, and the end token's vector.")
    vision = image.sizes
    return {
        "projection_dim": method.projections["text"].dim,
        "vision_config": {
            "hidden_size": vision["width"],
            "num_hidden_layers": vision["layers"],
            "num_attention_heads": vision["width"] // vision["head_width"],
            "intermediate_size": int(vision["width"] * vision["mlp_ratio"]),
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
            **_transformers_activation(vision),
        },
        "text_config": _text_config(text),
    }


def _siglip_config(method: ImageTextMethod, image: TimmImageEncoder, text: OpenClipTextEncoder) -> dict[str, Any]:
    if text.tower.attn_mask is not None or text.sizes["pool_type"] != "last":
        raise ValueError("transformers' SigLIP has a text tower without causal mask, and the last position's vector.")
    trunk = image.model
    block = trunk.blocks[0]
    tanh = isinstance(block.mlp.act, GELUTanh) or getattr(block.mlp.act, "approximate", "none") == "tanh"
    return {
        "vision_config": {
            "hidden_size": trunk.embed_dim,
            "num_hidden_layers": len(trunk.blocks),
            "num_attention_heads": block.attn.num_heads,
            "intermediate_size": block.mlp.fc1.out_features,
            "image_size": trunk.patch_embed.img_size[0],
            "patch_size": trunk.patch_embed.patch_size[0],
            "hidden_act": "gelu_pytorch_tanh" if tanh else "gelu",
            "layer_norm_eps": trunk.norm.eps,
        },
        "text_config": _text_config(text) | {"projection_size": method.projections["text"].dim},
    }


def _text_config(text: OpenClipTextEncoder) -> dict[str, Any]:
    sizes = text.sizes
    end = sizes["eos_id"] if sizes["pool_type"] == "eos" else sizes["vocab_size"] - 1
    return {
        "hidden_size": sizes["width"],
        "num_hidden_layers": sizes["layers"],
        "num_attention_heads": sizes["heads"],
        "intermediate_size": int(sizes["width"] * sizes["mlp_ratio"]),
        "max_position_embeddings": sizes["context_length"],
        "vocab_size": sizes["vocab_size"],
        "eos_token_id": end,
        "bos_token_id": end - 1,
        "pad_token_id": sizes["pad_id"],
        **_transformers_activation(sizes),
    }


def _transformers_activation(sizes: Mapping[str, Any]) -> dict[str, Any]:
    tanh = (sizes["act_kwargs"] or {}).get("approximate") == "tanh"
    name = "quick_gelu" if sizes["quick_gelu"] else "gelu_pytorch_tanh" if tanh else "gelu"
    return {"hidden_act": name, "layer_norm_eps": (sizes["norm_kwargs"] or {}).get("eps", 1e-5)}


def _names(kind: str, image_layers: int, text_layers: int) -> list[Rename]:
    text = "encoders.text.tower."
    names = [
        *LOGITS,
        *_block_names("text_model", f"{text}transformer.resblocks", text_layers, OPEN_CLIP_BLOCK),
        Rename("text_model.embeddings.token_embedding.", f"{text}token_embedding."),
        Rename("text_model.embeddings.position_embedding.weight", f"{text}positional_embedding"),
        Rename("text_model.final_layer_norm.", f"{text}ln_final."),
    ]
    if kind == "clip":
        image = "encoders.image.tower."
        return [
            *names,
            *_block_names("vision_model", f"{image}transformer.resblocks", image_layers, OPEN_CLIP_BLOCK),
            Rename("vision_model.embeddings.class_embedding", f"{image}class_embedding"),
            Rename("vision_model.embeddings.patch_embedding.", f"{image}conv1."),
            Rename("vision_model.embeddings.position_embedding.weight", f"{image}positional_embedding"),
            Rename("vision_model.pre_layrnorm.", f"{image}ln_pre."),
            Rename("vision_model.post_layernorm.", f"{image}ln_post."),
            Rename("visual_projection.", "projections.image.linear."),
            Rename("text_projection.", "projections.text.linear."),
        ]
    image = "encoders.image.model."
    return [
        *names,
        *_block_names("vision_model", f"{image}blocks", image_layers, TIMM_BLOCK),
        Rename("vision_model.embeddings.patch_embedding.", f"{image}patch_embed.proj."),
        Rename("vision_model.embeddings.position_embedding.weight", f"{image}pos_embed"),
        Rename("vision_model.post_layernorm.", f"{image}norm."),
        Rename("vision_model.head.probe", f"{image}attn_pool.latent"),
        Rename("vision_model.head.attention.q_proj.", f"{image}attn_pool.q."),
        Rename("vision_model.head.attention.kv_proj.", f"{image}attn_pool.kv."),
        Rename("vision_model.head.attention.out_proj.", f"{image}attn_pool.proj."),
        Rename("vision_model.head.layernorm.", f"{image}attn_pool.norm."),
        Rename("vision_model.head.mlp.", f"{image}attn_pool.mlp."),
        Rename("text_model.head.", "projections.text.linear."),
    ]


def _block_names(theirs: str, ours: str, layers: int, block: Mapping[str, str]) -> list[Rename]:
    return [
        Rename(f"{theirs}.encoder.layers.{layer}.{their}", f"{ours}.{layer}.{our}")
        for layer in range(layers)
        for their, our in block.items()
    ]


def _fused(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """transformers' weights in the shapes used here: query, key and value of a block in one matrix."""
    fused = {}
    for name, value in weights.items():
        if ".self_attn.q_proj." in name:
            parts = [weights[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            fused[name.replace("q_proj", "in_proj")] = torch.cat(parts)
        elif ".head.attention.in_proj_" in name:
            width = len(value) // 3
            query_name, pair_name = name.replace("in_proj_", "q_proj."), name.replace("in_proj_", "kv_proj.")
            fused[query_name], fused[pair_name] = value[:width], value[width:]
        elif name in ("logit_scale", "logit_bias"):
            fused[name] = value.reshape(())
        elif not name.endswith("position_ids"):
            fused[name] = value
    siglip = "vision_model.head.probe" in fused
    for name in list(fused):
        if ".self_attn.k_proj." in name or ".self_attn.v_proj." in name:
            del fused[name]
        elif siglip and name == "vision_model.embeddings.position_embedding.weight":
            fused[name] = fused[name][None]  # timm keeps a batch dimension
    return fused


def _separate(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `_fused`."""
    separate = {}
    siglip = "vision_model.head.probe" in weights
    for name, value in weights.items():
        if ".self_attn.in_proj." in name:
            for part, piece in zip("qkv", value.chunk(3), strict=True):
                separate[name.replace("in_proj", f"{part}_proj")] = piece
        elif ".head.attention.q_proj." in name:
            pair = weights[name.replace("q_proj", "kv_proj")]
            separate[name.replace("q_proj.", "in_proj_")] = torch.cat([value, pair])
        elif ".head.attention.kv_proj." in name:
            continue
        elif siglip and name == "vision_model.embeddings.position_embedding.weight":
            separate[name] = value[0]
        elif siglip and name in ("logit_scale", "logit_bias"):
            separate[name] = value.reshape(1)
        else:
            separate[name] = value
    return separate


def _image_processor(folder: Path) -> ImageProcessor | None:
    path = folder / "preprocessor_config.json"
    if not path.exists():
        return None
    config = json.loads(path.read_text(encoding="utf-8"))
    size = config["size"]
    squash = isinstance(size, Mapping) and "height" in size
    side = (size["height"] if squash else size["shortest_edge"]) if isinstance(size, Mapping) else size
    interpolation: Any = RESAMPLING[config.get("resample", 3)]
    mean, std = tuple(config["image_mean"]), tuple(config["image_std"])
    return ImageProcessor(side, mean, std, interpolation, "squash" if squash else "shortest")


def _depth(encoder: Encoder) -> int:
    if isinstance(encoder, TimmImageEncoder):
        return len(encoder.model.blocks)
    assert isinstance(encoder, OpenClipImageEncoder | OpenClipTextEncoder)
    return encoder.sizes["layers"]


def _tower_name(encoder: nn.Module) -> str:
    if isinstance(encoder, TimmImageEncoder):
        return str(encoder.model.default_cfg["architecture"])
    return type(encoder).__name__
