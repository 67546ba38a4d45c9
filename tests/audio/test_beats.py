"""BEATs: every switch against its equations, padding, visible patches, gradients, checkpoints."""

import math

import pytest
import torch
from torch.nn.functional import conv1d, conv2d, gelu, layer_norm, linear, relu, silu

from collimate.checkpoints.files import CheckpointError
from collimate.testing import run_on_ranks
from collimate.testing.memory import saved_memory
from collimate_audio import BEATs, BeatsHead, FilterBank

from .beats_toys import ENCODER, OFFICIAL

CONFIG = {**OFFICIAL, "dropout": 0.0, "attention_dropout": 0.0}


def beats(**changes):
    torch.manual_seed(0)
    encoder = BEATs(**{**ENCODER, **changes})
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)  # so that no bias, gain or gate keeps its initial value
    return encoder.eval()


def _sharded() -> tuple[torch.Tensor, torch.Tensor]:
    from torch.distributed.device_mesh import init_device_mesh

    from collimate.training.sharding import shard

    encoder = beats()
    shard(encoder, init_device_mesh("cpu", (2,)))
    pooled = encoder(banks()).pooled
    pooled.square().sum().backward()
    table = encoder.encoder.layers[1].self_attn.relative_attention_bias.weight
    return pooled.detach(), table.grad


def test_layers_that_share_a_table_are_sharded():
    encoder = beats()
    pooled = encoder(banks()).pooled
    pooled.square().sum().backward()
    table = encoder.encoder.layers[0].self_attn.relative_attention_bias.weight
    for found, gradient in run_on_ranks(_sharded, [(), ()]):
        torch.testing.assert_close(found, pooled.detach())
        torch.testing.assert_close(gradient, table.grad)  # the mean over ranks of equal batches


def banks(clips=2, frames=70, bands=48):
    return torch.randn(clips, frames, bands, generator=torch.Generator().manual_seed(1))


def norm(x, weights, name):
    return layer_norm(x, x.shape[-1:], weights[name + ".weight"], weights[name + ".bias"])


def oracle(weights, bank, real, **changes):
    """BEATs by its equations, in float64, with every matrix written out."""
    settings = {**ENCODER, "pre_norm": False, "deep_norm": True, "activation": "gelu", "gated": True, **changes}
    weights = {name: value.double() for name, value in weights.items()}
    x = conv2d(
        bank.double()[:, None], weights["patch_embedding.weight"], weights.get("patch_embedding.bias"), stride=16
    )
    x = norm(x.flatten(2).mT, weights, "layer_norm")
    if "post_extract_proj.weight" in weights:
        x = linear(x, weights["post_extract_proj.weight"], weights["post_extract_proj.bias"])
    x = x * real[..., None]
    direction = weights["encoder.pos_conv.0.weight_v"]
    kernel = weights["encoder.pos_conv.0.weight_g"] * direction / direction.square().sum((0, 1), keepdim=True).sqrt()
    padding = settings["position_kernel"] // 2
    moved = conv1d(
        x.mT, kernel, weights["encoder.pos_conv.0.bias"], padding=padding, groups=settings["position_groups"]
    )
    x = x + gelu(moved[..., : x.shape[1]]).mT
    if not settings["pre_norm"]:
        x = norm(x, weights, "encoder.layer_norm")
    alpha = (2 * settings["layers"]) ** 0.25 if settings["deep_norm"] else 1.0
    for number in range(settings["layers"]):
        layer = {
            name.removeprefix(f"encoder.layers.{number}."): value
            for name, value in weights.items()
            if name.startswith(f"encoder.layers.{number}.")
        }
        if settings["pre_norm"]:
            x = x + attention(norm(x, layer, "self_attn_layer_norm"), layer, real, settings)
            x = x + mlp(norm(x, layer, "final_layer_norm"), layer, settings)
        else:
            x = norm(alpha * x + attention(x, layer, real, settings), layer, "self_attn_layer_norm")
            x = norm(alpha * x + mlp(x, layer, settings), layer, "final_layer_norm")
    return norm(x, weights, "encoder.layer_norm") if settings["pre_norm"] else x


def attention(x, layer, real, settings):
    heads = settings["heads"]
    query, key, value = (
        linear(x, layer[f"self_attn.{name}_proj.weight"], layer[f"self_attn.{name}_proj.bias"])
        .unflatten(-1, (heads, -1))
        .transpose(1, 2)
        for name in "qkv"
    )
    scores = query @ key.mT / math.sqrt(query.shape[-1])
    if "self_attn.relative_attention_bias.weight" in layer:
        table, length = layer["self_attn.relative_attention_bias.weight"], x.shape[1]
        bias = torch.stack(
            [torch.stack([table[bucket(j - i, settings)] for j in range(length)]) for i in range(length)]
        )
        bias = bias.permute(2, 0, 1)[None]
        if settings["gated"]:
            u = linear(query, layer["self_attn.grep_linear.weight"], layer["self_attn.grep_linear.bias"])
            a, b = u[..., :4].sum(-1, keepdim=True).sigmoid(), u[..., 4:].sum(-1, keepdim=True).sigmoid()
            bias = (a * (b * layer["self_attn.grep_a"] - 1) + 2) * bias
        scores = scores + bias
    weights = scores.masked_fill(~real[:, None, None, :], -torch.inf).softmax(-1)
    joined = (weights @ value).transpose(1, 2).flatten(2)
    return linear(joined, layer["self_attn.out_proj.weight"], layer["self_attn.out_proj.bias"])


def bucket(distance, settings):
    half = settings["buckets"] // 2
    exact, far = half // 2, abs(distance)
    if far >= exact:
        growth = math.log(far / exact) / math.log(settings["max_distance"] / exact)
        far = min(exact + int(growth * (half - exact)), half - 1)
    return far + (half if distance > 0 else 0)


def mlp(x, layer, settings):
    if settings["activation"] == "glu":
        plain, gate = linear(x, layer["fc1.linear.weight"], layer["fc1.linear.bias"]).chunk(2, -1)
        hidden = plain * silu(gate)
    else:
        hidden = linear(x, layer["fc1.weight"], layer["fc1.bias"])
        hidden = gelu(hidden) if settings["activation"] == "gelu" else relu(hidden)
    return linear(hidden, layer["fc2.weight"], layer["fc2.bias"])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"deep_norm": False},
        {"pre_norm": True, "deep_norm": False},
        {"activation": "glu"},
        {"activation": "relu", "patch_bias": True},
        {"gated": False},
        {"relative_position": False},
        {"position_kernel": 5, "patch_width": 24},
    ],
    ids=str,
)
def test_equations(changes):
    encoder, bank = beats(**changes), banks()
    frames = torch.arange(70) < torch.tensor([[70], [40]])
    found = encoder(bank, frames)
    expected = oracle(encoder.state_dict(), bank, found.mask, **changes)
    torch.testing.assert_close(found.tokens.double(), expected, rtol=0, atol=3e-5)
    torch.testing.assert_close(found.pooled[1].double(), expected[1, :6].mean(0), rtol=0, atol=3e-5)
    assert found.grid == (4, 3)
    assert found.mask.sum(1).tolist() == [12, 6]


def test_a_clip_is_encoded_alike_in_any_batch():
    encoder, processor = beats(), FilterBank(1.0, mel_bands=48)
    encoder.processor = processor
    short, long = torch.randn(9_000) * 0.1, torch.randn(16_000) * 0.1
    together, alone = encoder.encode([short, long]), encoder(processor_of(9_000).finish(short[None]))
    torch.testing.assert_close(together.pooled[0], alone.pooled[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(together.tokens[0][together.mask[0]], alone.tokens[0], rtol=0, atol=1e-5)


def processor_of(samples):
    return FilterBank(samples / 16_000, mel_bands=48)


def test_nothing_but_padding_is_zero_and_finite():
    encoder = beats()
    bank = banks().requires_grad_()
    found = encoder(bank, torch.tensor([[True] * 70, [False] * 70]))
    assert torch.equal(found.pooled[1], torch.zeros(24))
    found.pooled.sum().backward()
    assert bank.grad.isfinite().all()
    assert found.tokens.isfinite().all()


def test_what_has_no_patch_is_refused():
    with pytest.raises(ValueError, match="15 frames and 48 bands"):
        beats()(banks(frames=15))
    with pytest.raises(ValueError, match="of each frame"):
        beats()(banks(), torch.ones(2, 12, dtype=torch.bool))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pre_norm": True}, "DeepNorm is a post-norm"),
        ({"activation": "tanh"}, "'tanh'"),
        ({"heads": 5}, "5 heads"),
        ({"position_groups": 5}, "5 groups"),
        ({"buckets": 6}, "buckets"),
        ({"max_distance": 4}, "max_distance"),
    ],
)
def test_contradictions(changes, message):
    with pytest.raises(ValueError, match=message):
        BEATs(**{**ENCODER, **changes})


@pytest.mark.parametrize("in_place", [True, False])
def test_all_patches_visible(in_place):
    encoder, bank = beats(), banks()
    found = encoder.visible(bank, torch.arange(12).expand(2, 12), in_place=in_place)
    torch.testing.assert_close(found, encoder(bank).tokens, rtol=0, atol=1e-6)


def test_visible_patches_know_their_places():
    """The positional bias and the convolution are those of the whole clip, and what only fills up changes nothing."""
    encoder, bank = beats(), banks(1)
    few, filled = torch.tensor([[1, 5, 10]]), torch.tensor([[1, 5, 10, 0, 2]])
    mask = torch.tensor([[True, True, True, False, False]])
    expected = encoder.visible(bank, few)
    torch.testing.assert_close(encoder.visible(bank, filled, mask)[:, :3], expected, rtol=0, atol=1e-6)
    assert not torch.allclose(encoder.visible(bank, few, in_place=False), expected, atol=1e-3)
    biased = encoder.encoder.layers.position_bias(few)[0]
    torch.testing.assert_close(biased, encoder.encoder.layers.position_bias(torch.arange(12))[:, few[0]][:, :, few[0]])


def test_the_bias_is_one_parameter():
    encoder = beats()
    names = [name for name, _ in encoder.named_parameters() if "relative_attention_bias" in name]
    assert len(names) == 1
    assert sum("relative_attention_bias" in name for name in encoder.state_dict()) == 2


def test_gradient_decay():
    """Layer i of L learns from r^(L-1-i) of the gradient, what lies before from r^L; values do not change."""
    changes = {"layers": 3, "relative_position": False}
    plain, decayed = beats(**changes), beats(**changes, gradient_decay=0.5)
    bank = banks()
    values = [encoder.train()(bank).tokens for encoder in (plain, decayed)]
    assert torch.equal(*values)
    for value in values:
        (value * torch.linspace(-1, 1, 24)).sum().backward()
    whole, part = (dict(encoder.named_parameters()) for encoder in (plain, decayed))
    for name, share in {"patch_embedding": 0.125, "encoder.layers.0.fc1": 0.25, "encoder.layers.2.fc1": 1.0}.items():
        name += ".weight"
        torch.testing.assert_close(part[name].grad, share * whole[name].grad, rtol=1e-4, atol=1e-7)


def test_layer_drop_leaves_out_layers_in_training_alone():
    encoder, bank = beats(layer_drop=1.0), banks()
    entering = encoder.features(bank)[0]
    assert torch.equal(encoder.train()(bank).tokens, entering)
    assert not torch.equal(encoder.eval()(bank).tokens, entering)


@pytest.mark.parametrize(("length", "matrices"), [(0, 1), (512, 2)], ids=["long clips", "short clips"])
def test_the_gated_bias_is_not_kept(length, matrices, monkeypatch):
    """One more layer keeps less for backward than its gated bias, B x H x L x L, beside its weights, if any."""
    monkeypatch.setattr("collimate_audio.relative_attention.KEPT", length)
    bank = banks(4, 320, 128)
    scores = 4 * 3 * 160 * 160 * 4
    kept = []
    for layers in (2, 3):
        encoder = beats(layers=layers).train()
        with saved_memory([bank, *encoder.parameters()]) as memory:
            loss = encoder(bank).pooled.sum()
        kept.append(memory.bytes)
        del loss
    assert kept[1] - kept[0] < matrices * scores


def test_half_precision_is_close():
    encoder, bank = beats(), banks()
    with torch.autocast("cpu", torch.bfloat16):
        half = encoder(bank, torch.ones(2, 70, dtype=torch.bool)).tokens
    assert (half.float() - encoder(bank).tokens).abs().max() < 0.2


def test_folder(tmp_path):
    encoder = beats()
    encoder.save_pretrained(tmp_path / "beats", FilterBank(1.0, mel_bands=48))
    loaded = BEATs.from_pretrained(tmp_path / "beats")
    assert torch.equal(loaded(banks()).tokens, encoder(banks()).tokens)
    assert isinstance(loaded.processor, FilterBank)


def official(**changes):
    weights = beats(layers=2).state_dict()
    head = {"predictor.weight": torch.randn(3, 24), "predictor.bias": torch.randn(3)}
    return {"cfg": CONFIG, "model": {**weights, **head}, "label_dict": {2: "/m/c", 0: "/m/a", 1: "/m/b"}, **changes}


def test_official_file(tmp_path):
    torch.save(official(), tmp_path / "beats.pt")
    encoder, head = BEATs.from_official(tmp_path / "beats.pt"), BeatsHead.from_official(tmp_path / "beats.pt")
    expected = beats()(banks())
    torch.testing.assert_close(encoder.eval()(banks()).tokens, expected.tokens)
    assert head.labels == ["/m/a", "/m/b", "/m/c"]
    weights = official()["model"]
    logits = linear(expected.pooled, head.predictor.weight, head.predictor.bias)
    torch.testing.assert_close(head.eval()(expected), logits, rtol=0, atol=1e-5)
    assert set(weights) - {"predictor.weight", "predictor.bias"} == encoder.state_dict().keys()


def test_new_names_of_weight_norm():
    checkpoint = official()
    prefix = "encoder.pos_conv.0."
    weights = dict(checkpoint["model"])
    for new, old in (("original0", "weight_g"), ("original1", "weight_v")):
        weights[f"{prefix}parametrizations.weight.{new}"] = weights.pop(prefix + old)
    encoder = BEATs.from_official({**checkpoint, "model": weights})
    assert torch.equal(encoder.encoder.pos_conv[0].weight_g, checkpoint["model"][prefix + "weight_g"])


def test_bad_checkpoints(tmp_path):
    weights = dict(official()["model"])
    with pytest.raises(CheckpointError, match="`cfg` and `model`"):
        BEATs.from_official(weights)
    with pytest.raises(CheckpointError, match="not fine-tuned"):
        BeatsHead.from_official({"cfg": CONFIG, "model": beats().state_dict()})
    del weights["layer_norm.weight"]
    with pytest.raises(CheckpointError, match=r"layer_norm\.weight"):
        BEATs.from_official({"cfg": CONFIG, "model": weights})
    (tmp_path / "cut.pt").write_bytes(b"PK")
    with pytest.raises(CheckpointError, match=r"cut\.pt"):
        BEATs.from_official(tmp_path / "cut.pt")


@pytest.mark.parametrize("pre_norm", [False, True])
def test_depths_follow_the_computation(pre_norm: bool):
    """The norm before the layers, and the biases that all of them share, are embeddings, whatever their names."""
    encoder = beats(pre_norm=pre_norm, deep_norm=not pre_norm)
    depths = encoder.depths()
    assert depths.keys() == dict(encoder.named_parameters()).keys()
    expected = {
        "patch_embedding.weight": 3,
        "post_extract_proj.weight": 3,
        "encoder.pos_conv.0.weight_g": 3,
        "encoder.layers.0.self_attn.relative_attention_bias.weight": 3,
        "encoder.layers.0.self_attn.grep_a": 2,
        "encoder.layers.1.fc1.weight": 1,
        "encoder.layer_norm.weight": 1 if pre_norm else 3,
    }
    assert {name: depths[name] for name in expected} == expected
