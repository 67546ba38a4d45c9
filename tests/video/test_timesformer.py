"""TimeSformer: what each attention may see, other sizes, weights to start from, and what is refused."""

import pytest
import timm
import torch
from safetensors.torch import save_file

import collimate
from collimate.checkpoints.files import CheckpointError
from collimate_video import TimeSformer, divided_attention, pooled_over_time
from collimate_video.positions import resized_positions, resized_times

TINY = {"image_size": 32, "patch_size": 8, "frames": 4, "width": 32, "layers": 2, "heads": 4, "hidden": 64}


def encoder(**changes) -> TimeSformer:
    torch.manual_seed(0)
    return TimeSformer(**{**TINY, **changes}).eval()


def awake(**changes) -> TimeSformer:
    """One whose frames see each other, and differ by their place in time."""
    made = encoder(**changes)
    for block in made.blocks:
        torch.nn.init.normal_(block.temporal_fc.weight, std=0.2)
    torch.nn.init.normal_(made.time_embed, std=0.2)
    return made


def clips(batch=2, frames=4, height=32, width=32) -> torch.Tensor:
    return torch.randn(batch, frames, 3, height, width, generator=torch.Generator().manual_seed(1))


def test_the_encoding():
    found = encoder()(clips())
    assert found.grid == (4, 4, 4)
    assert found.pooled.shape == (2, 32)
    assert found.tokens.shape == (2, 64, 32)


def test_tokens_lie_frame_by_frame_and_row_by_row():
    made, batch = encoder(layers=1), clips(1)
    changed = batch.clone()
    changed[:, 2, :, 8:16, 24:] += 1  # frame 2, row 1, column 3
    with torch.no_grad():
        embedded = [made._embedded(each)[1] for each in (batch, changed)]
        moved = (embedded[0] - embedded[1]).abs().amax(-1)[0, 1:]
    assert moved.nonzero().flatten().tolist() == [(1 * 4 + 3) * 4 + 2]  # place by place inside
    difference = (made(batch).tokens - made(changed).tokens).abs().amax(-1)[0]
    assert int(difference.argmax()) == (2 * 4 + 1) * 4 + 3


def test_at_the_start_frames_do_not_see_each_other():
    made, batch = encoder(layers=1), clips(1)
    changed = batch.clone()
    changed[:, 0] += 1
    before, after = (made(each).tokens.unflatten(1, (4, 16)) for each in (batch, changed))
    torch.testing.assert_close(before[:, 1:], after[:, 1:], rtol=0, atol=0)
    assert not torch.equal(made(batch).pooled, made(changed).pooled)  # the class token is of all frames


def test_a_place_sees_itself_in_time_and_its_frame_in_space():
    """With attention in space silent, a change at (frame 0, place 5) reaches all frames of that place, and no other."""
    made, batch = awake(layers=1), clips(1)
    block = made.blocks[0]
    tokens = made._embedded(batch)[1]
    changed = tokens.clone()
    changed[:, 1 + 5 * 4 + 0, ::2] += 1
    with torch.no_grad():
        torch.nn.init.zeros_(block.attn.proj.weight)
        torch.nn.init.zeros_(block.attn.proj.bias)
        moved = (block(tokens, 4) - block(changed, 4)).abs().amax(-1)[0, 1:].unflatten(0, (16, 4)) > 1e-6
    assert moved.any(1).nonzero().flatten().tolist() == [5]
    assert bool(moved[5].all())


def test_it_equals_an_image_transformer_on_still_frames_at_the_start(tmp_path):
    torch.manual_seed(0)
    vit = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=4, mlp_ratio=2
    ).eval()
    save_file(vit.state_dict(), tmp_path / "vit.safetensors")
    made = encoder(pretrained=str(tmp_path / "vit.safetensors"))
    frame = clips(2, 1)
    found, wanted = made(frame.expand(-1, 4, -1, -1, -1)), vit.forward_features(frame[:, 0])
    torch.testing.assert_close(found.pooled, wanted[:, 0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(pooled_over_time(found).tokens, wanted[:, 1:], rtol=1e-5, atol=1e-5)
    for block in made.blocks:
        assert torch.equal(block.temporal_attn.qkv.weight, block.attn.qkv.weight)
        assert torch.equal(block.temporal_norm1.bias, block.norm1.bias)


@pytest.mark.parametrize("resize", ["nearest", "bicubic"])
def test_other_sizes(resize):
    made = encoder(resize=resize)
    found = made(clips(1, 7, 48, 24))
    assert found.grid == (7, 6, 3)
    assert made(clips(1, 1)).grid == (1, 4, 4)


def test_the_nearest_positions():
    table = torch.arange(1 + 16.0).view(1, -1, 1)
    grown = resized_positions(table, (8, 8))[0, :, 0]
    assert grown[0] == 0
    assert grown[1:].view(8, 8)[::2, ::2].flatten().tolist() == list(range(1, 17))
    times = resized_times(torch.arange(4.0).view(1, 4, 1), 8)
    assert times.flatten().tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert resized_times(torch.arange(4.0).view(1, 4, 1), 2).flatten().tolist() == [0, 2]


def test_as_officially_an_equal_count_of_places_keeps_the_table():
    table = torch.randn(1, 17, 3)
    assert torch.equal(resized_positions(table, (2, 8)), table)


def test_published_weights_of_other_sizes_are_resized(tmp_path):
    small = awake()
    save_file(
        {f"visual_encoder.model.{name}": value for name, value in small.state_dict().items()},
        tmp_path / "a.safetensors",
    )
    large = encoder(pretrained=str(tmp_path / "a.safetensors"), image_size=64, frames=8)
    assert large.pos_embed.shape == (1, 65, 32)
    assert torch.equal(large.time_embed[:, ::2], small.time_embed)
    assert torch.equal(large.blocks[1].temporal_fc.weight, small.blocks[1].temporal_fc.weight)


@pytest.mark.parametrize("wrap", [lambda w: w, lambda w: {"model_state": w, "epoch": 3}], ids=["plain", "wrapped"])
def test_from_official_files(tmp_path, wrap):
    made = awake()
    weights = {f"model.{name}": value for name, value in made.state_dict().items()}
    weights["model.head.weight"] = torch.zeros(400, 32)
    torch.save(wrap(weights), tmp_path / "weights.pyth")
    again = TimeSformer.from_official(tmp_path / "weights.pyth", heads=4).eval()
    assert torch.equal(again(clips()).pooled, made(clips()).pooled)


def test_save_and_load(tmp_path):
    made = awake()
    made.save_pretrained(tmp_path / "encoder")
    again = collimate.load(tmp_path / "encoder").eval()
    assert torch.equal(again(clips()).tokens, made(clips()).tokens)


def test_recomputed_activations_change_nothing():
    gradients = []
    for recompute in (False, True):
        made = awake(grad_checkpointing=recompute, drop_path=0.0).train()
        made(clips()).pooled.pow(3).sum().backward()
        gradients.append([parameter.grad for parameter in made.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("name", "other"), [("SHORT", 0), ("_unkept", lambda between, linear, given: linear(between(given)))]
)
def test_neither_the_form_of_attention_nor_what_is_kept_changes_a_step(monkeypatch, name, other):
    found = step(awake())
    monkeypatch.setattr(divided_attention, name, other)
    for one, two in zip(found, step(awake()), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def test_an_adapter_that_draws_random_numbers_draws_them_again():
    adapter = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(8, 8, bias=False))
    torch.nn.init.eye_(adapter[1].weight)
    inputs = torch.ones(4, 8, requires_grad=True)
    found = divided_attention._unkept(torch.nn.Identity(), adapter, inputs)
    found.sum().backward()
    assert 0 < found.count_nonzero() < 32
    torch.testing.assert_close(inputs.grad, found.detach())  # 2 where the input was kept, else 0


def step(made: TimeSformer) -> list[torch.Tensor]:
    """The pooled output and all gradients."""
    pooled = made(clips()).pooled
    pooled[:, ::2].square().sum().backward()
    return [pooled.detach(), *(parameter.grad for parameter in made.parameters())]


def test_drop_path_leaves_out_whole_residuals_in_training_alone():
    made = awake(layers=1, drop_path=0.0)
    block = made.blocks[0]
    block.drop_path = 0.5
    residual = torch.ones(8, 5, 3, 2)
    assert torch.equal(block._kept(residual), residual)
    kept = block.train()._kept(residual)
    assert set(kept.unique().tolist()) == {0.0, 2.0}
    per_sequence = kept.flatten(2)
    assert bool((per_sequence.amin(2) == per_sequence.amax(2)).all())
    assert len(per_sequence[:, :, 0].unique(dim=0)) > 1  # places, or frames, of one clip differ


def test_features_are_maps_of_each_block():
    made, batch = awake(), clips(2, 3, 32, 16)
    maps = made.features(batch)
    assert [tuple(each.shape) for each in maps] == [(2, 32, 3, 4, 2)] * 2
    last = made.norm(maps[-1].flatten(2).mT)
    torch.testing.assert_close(last, made(batch).tokens)


@pytest.mark.parametrize(
    ("shape", "told"), [((2, 3, 32, 32), "clips"), ((1, 4, 3, 30, 32), "divides"), ((1, 3, 4, 32, 32), "clips")]
)
def test_what_is_no_clip_is_refused(shape, told):
    with pytest.raises(ValueError, match=told):
        encoder()(torch.zeros(shape))


@pytest.mark.parametrize("wrong", [{"image_size": 30}, {"heads": 5}, {"resize": "linear"}])
def test_sizes_that_contradict_each_other(wrong):
    with pytest.raises(ValueError, match=r"divide|nearest"):
        TimeSformer(**{**TINY, **wrong})


def test_weights_of_another_model_are_refused(tmp_path):
    save_file(encoder().state_dict(), tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="sizes of its weights"):
        encoder(pretrained=str(tmp_path / "a.safetensors"), width=64)
    with pytest.raises(CheckpointError, match="neither a file nor a model"):
        encoder(pretrained="no_such_model")
    save_file({"weight": torch.zeros(2)}, tmp_path / "b.safetensors")
    with pytest.raises(CheckpointError, match="patch_embed"):
        TimeSformer.from_official(tmp_path / "b.safetensors")


def test_only_clips_have_a_mean_over_time():
    with pytest.raises(ValueError, match="mean over time"):
        pooled_over_time(pooled_over_time(encoder()(clips())))
