"""SG-VLP-style pre-training: its contrasts against written-out ones, on ranks, in chunks, with parts missing."""

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

import collimate
from collimate.checkpoints import save
from collimate.data import open_source
from collimate.encoders import Bert
from collimate.evaluation import evaluate_retrieval
from collimate.testing import assert_cached_equals_full, assert_same_on_ranks
from collimate_3d.graphs import NoGraph, OffsetAttention
from collimate_3d.language import GRUTextEncoder
from collimate_3d.scene_graph_vlp import SceneGraphVLP
from collimate_3d.scene_graph_vlp.objectives import Referred, mentions_of, named_object_losses, referral_loss
from collimate_3d.scenes import unpacked_scenes

from .scene_toys import batch_of, rooms, scene_graph_vlp

TERMS = {"word", "sentence", "scene", "grounding", "text_class", "masked_words", "masked_objects"}


@pytest.fixture(scope="module")
def source():
    return rooms()


@pytest.fixture
def method():
    return scene_graph_vlp()


@pytest.fixture
def batch(method, source):
    return batch_of(method, source, range(6))


# Contrasts --------------------------------------------------------------------------------------------------------


def toys():
    torch.manual_seed(0)
    nodes = normalize(torch.randn(4, 5, 8, dtype=torch.float64), dim=-1)
    given = torch.arange(5) < torch.tensor([5, 3, 4, 1])[:, None]
    labels = torch.randint(0, 3, (4, 5)).masked_fill(~given, -1)
    labels[0, 0] = -1
    sentence = normalize(torch.randn(4, 3, 8, dtype=torch.float64), dim=-1)
    place = torch.tensor([[0, 1, 1], [2, 2, -1], [3, 0, 1], [-1, -1, -1]])
    return nodes, given, labels, sentence, place


def contrast(nodes, given, labels, sentence, place):
    scenes, numbers = (place >= 0).nonzero(as_tuple=True)
    targets = place[scenes, numbers]
    referred = Referred(sentence[scenes, numbers], scenes, targets, labels[scenes, targets])
    return referral_loss(referred, nodes, given, labels, 5.0)


def written_out(nodes, given, labels, sentence, place):
    told = [(b, i, int(place[b, i])) for b in range(len(place)) for i in range(3) if place[b, i] >= 0]
    objects = [(b, m) for b in range(len(given)) for m in range(5) if given[b, m]]
    total = 0.0
    for b, i, t in told:
        own = 5 * nodes[b, t] @ sentence[b, i]
        label = labels[b, t]
        rivals = [(c, m) for c, m in objects if c == b or label < 0 or labels[c, m] != label]
        total = total + torch.stack([5 * nodes[c, m] @ sentence[b, i] for c, m in rivals]).logsumexp(0) - own
        rivals = [
            (c, j)
            for c, j, u in told
            if (c, j) == (b, i) or (c == b and u != t) or (c != b and (label < 0 or labels[c, u] != label))
        ]
        total = total + torch.stack([5 * nodes[b, t] @ sentence[c, j] for c, j in rivals]).logsumexp(0) - own
    return total / (2 * len(told))


def test_sentences_and_objects_as_written_out():
    torch.testing.assert_close(contrast(*toys()), written_out(*toys()))


def test_sentences_and_objects_meet_on_all_ranks():
    names = ("nodes", "given", "labels", "sentence", "place")
    assert_same_on_ranks(contrast, dict(zip(names, toys(), strict=True)))


def test_words_and_objects_as_written_out():
    torch.manual_seed(0)
    words, objects = (
        normalize(torch.randn(*shape, dtype=torch.float64), dim=-1) for shape in ((2, 2, 4, 8), (2, 3, 8))
    )
    given = torch.tensor([[True, True, True], [True, True, False]])
    ids = torch.tensor([[7, 3, 5], [2, 9, -1]])
    real = torch.arange(4) < torch.tensor([[4, 3], [2, 4]])[:, :, None]
    names = torch.tensor([[[-1, 7, 7, 5], [3, -1, -1, -1]], [[8, -1, -1, -1], [2, 2, -1, 9]]])
    alike = torch.zeros(2, 3, 3, dtype=torch.bool)
    alike[0, 0, 1] = alike[0, 1, 0] = True
    found = named_object_losses(words, objects, mentions_of(names, ids), given, real, 4.0, alike)
    assert found.named.sum() == 5
    spoken = words[0, 0, 1:3].mean(0)  # of object 7 in two pieces
    logits = 4 * torch.stack([objects[0, 0] @ spoken, objects[0, 2] @ spoken])  # but not of 3, which is alike
    torch.testing.assert_close(found.by_word[0, 0, 0], cross_entropy(logits, torch.tensor(0)))
    logits = 4 * torch.stack([objects[0, 0] @ each for each in (spoken, words[0, 0, 0], words[0, 0, 3])])
    torch.testing.assert_close(found.by_object[0, 0, 0], cross_entropy(logits, torch.tensor(0)))
    logits = 4 * words[1, 1, 3] @ objects[1, :2].T
    torch.testing.assert_close(found.by_word[1, 1, 1], cross_entropy(logits, torch.tensor(1)))
    assert (found.by_word[~found.named] == 0).all()
    assert (found.by_object[~found.named] == 0).all()


# The method -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("graph", [None, OffsetAttention(24), NoGraph(24)])
def test_all_terms_are_finite_and_reach_every_weight(batch, graph):
    method = scene_graph_vlp(graph)
    terms = method.loss_terms(batch)
    assert set(terms) == TERMS
    method.total_loss(terms).backward()
    assert all(torch.isfinite(term) and term > 0 for term in terms.values())
    lacking = [name for name, each in method.named_parameters() if each.grad is None or not each.grad.isfinite().all()]
    assert not lacking


@pytest.mark.parametrize(
    "encoder",
    [
        lambda: Bert(vocab_size=80, context_length=64, width=16, layers=1, heads=2, hidden=32, dropout=0.0),
        lambda: GRUTextEncoder(80, 16, 32, layers=2, bidirectional=True),
    ],
)
def test_other_encoders_read_sentences(batch, encoder):
    method = scene_graph_vlp(text_encoder=encoder()).eval()
    assert all(torch.isfinite(term) for term in method.loss_terms(batch).values())
    ids = batch["text"][:2]
    short = ids[:, : int(method.processors["text"].mask(ids).sum(1).max())]
    assert short.shape[1] < ids.shape[1]
    torch.testing.assert_close(*(method.encode("text", each).pooled for each in (ids, short)))


def test_half_precision(method, batch):
    with torch.autocast("cpu", torch.bfloat16):
        terms = method.loss_terms(batch)
    assert all(term.dtype == torch.float32 and torch.isfinite(term) for term in terms.values())


def test_hidden_objects_can_be_held_to_momentum_copies(batch):
    method = scene_graph_vlp(momentum=0.9, hide_words=1.0, hide_objects=0.0)
    terms = method.train().loss_terms(batch)
    assert terms["hidden_features"] == 0, "nothing is hidden"
    method.hide_objects = 1.0
    method.loss_terms(batch)["hidden_features"].backward()
    assert method.hidden_object.grad.abs().max() > 0
    assert all(each.grad is None and not each.requires_grad for each in method.copies.parameters())
    before = method.copies["graph"].norm.weight.clone()
    with torch.no_grad():
        method.graph.norm.weight += 1
    method.after_optimizer_step()
    torch.testing.assert_close(method.copies["graph"].norm.weight, before + 0.1)
    assert "copies.graph.norm.weight" in method.state_dict()


def without(batch, name):
    """The batch with nothing of that kind."""
    if name == "texts":
        return batch | {"text_given": torch.zeros(len(batch["text"]), dtype=torch.bool)}
    if name == "sentences":
        return batch | {"referrals": torch.zeros_like(batch["referrals"])}
    changed = {key: value.clone() for key, value in batch.items()}
    if name == "targets":
        changed["referrals"][..., 1] += 1000
    if name == "names":
        changed["referrals"][..., 16:] = -1
    if name == "classes":
        changed["scene"][..., 2] = -1
    if name == "objects but one":
        changed["scene"][:, 1:, 0] = 0
    return changed


@pytest.mark.parametrize(
    ("name", "silent"),
    [
        ("texts", {"scene"}),
        ("sentences", TERMS - {"scene"}),
        ("targets", {"sentence", "grounding", "text_class"}),
        ("names", {"word"}),
        ("classes", {"text_class", "masked_objects"}),
        ("objects but one", set()),
    ],
)
def test_what_is_missing_costs_nothing(method, batch, name, silent):
    terms = method.loss_terms(without(batch, name))
    assert {term for term, value in terms.items() if value == 0} >= silent
    assert all(torch.isfinite(value) for value in terms.values())
    for term in TERMS - silent - ({"grounding", "word"} if name.startswith("objects") else set()):
        assert terms[term] > 0
    method.total_loss(terms).backward()
    assert all(each.grad is None or each.grad.isfinite().all() for each in method.parameters())


@pytest.mark.parametrize("chunk", [1, 4])
def test_the_gradient_cache_changes_nothing(batch, chunk):
    method = scene_graph_vlp(hide_words=1.0, hide_objects=1.0)  # no draw, which chunks would make anew

    def run(chunk):
        method.gradient_cache = chunk
        return method.total_loss(method.loss_terms(batch))

    assert_cached_equals_full(lambda: run(None), lambda: run(chunk), dict(method.named_parameters()), tolerance=5e-5)


def test_the_whole_loss_is_the_same_on_ranks(batch):
    method = scene_graph_vlp(hide_words=1.0, hide_objects=1.0)
    rows = {f"embedded_{name}": each.detach() for name, each in method.embed(batch).items()}
    rows |= {f"batch_{name}": each for name, each in batch.items()}

    def loss(**rows):
        parts = [
            {name.removeprefix(part): each for name, each in rows.items() if name.startswith(part)}
            for part in ("embedded_", "batch_")
        ]
        return method.total_loss(method.losses(*parts))

    assert_same_on_ranks(loss, rows, ranks=(2,))


def test_sentences_find_their_objects_after_training(source):
    method = scene_graph_vlp(sentences=4)
    batch = batch_of(method, source, range(8))
    optimizer = torch.optim.AdamW(method.parameters(), 4e-3)
    method.train()
    before = method.loss_terms(batch)
    for _ in range(60):
        optimizer.zero_grad()
        terms = method.loss_terms(batch)
        method.total_loss(terms).backward()
        optimizer.step()
    assert all(terms[name] < 0.8 * before[name] for name in TERMS - {"masked_words", "scene"}), terms
    method.eval()
    scene = unpacked_scenes(batch["scene"])
    for scores in method.ground(batch["scene"], batch["referrals"]):
        assert scores.shape == (8, 4, scene.given.shape[1])
        chosen = scene.ids.gather(1, scores.argmax(-1))
        told = batch["referrals"][..., 0] > 0
        assert (chosen == batch["referrals"][..., 1])[told].float().mean() > 0.7
        assert (scores[~scene.given[:, None].expand_as(scores)] == -torch.inf).all()


def test_padding_changes_nothing(method, batch):
    method.eval()
    trimmed = method.processors["scene"].trimmed(batch["scene"])
    assert trimmed.shape[1] < batch["scene"].shape[1]
    for wide, narrow in zip(
        method.ground(batch["scene"], batch["referrals"]), method.ground(trimmed, batch["referrals"]), strict=True
    ):
        torch.testing.assert_close(wide[..., : trimmed.shape[1]], narrow)
    found = [method.encode("scene", each).pooled for each in (batch["scene"], trimmed)]
    torch.testing.assert_close(*found)


def test_encodings(method, source, batch):
    method.eval()
    scene = method.encode("scene", [source.read(place)["scene.npz"] for place in range(6)])
    torch.testing.assert_close(scene.pooled, method.encode("scene", batch["scene"]).pooled)
    assert scene.tokens.shape == (6, 8, 16)
    assert scene.mask.sum(1).tolist() == [len(source.room(place).things) for place in range(6)]
    told = method.encode("referrals", [source.read(place)["referrals.json"] for place in range(6)])
    torch.testing.assert_close(
        told.pooled, (told.tokens * told.mask[..., None]).sum(1) / told.mask.sum(1, keepdim=True)
    )
    alone = method.encode("text", [source.read(0)["referrals.json"][0]["text"]])
    torch.testing.assert_close(alone.pooled[0], told.tokens[0, 0])


def test_models_are_saved_and_loaded(method, source, batch, tmp_path):
    save(method, tmp_path / "model")
    again = collimate.load(tmp_path / "model")
    assert isinstance(again, SceneGraphVLP)
    for one, other in zip(
        *(each.eval().ground(batch["scene"], batch["referrals"]) for each in (method, again)), strict=True
    ):
        torch.testing.assert_close(one, other)
    assert "hidden_object" in again.state_dict(), "3D-VLP forgets it"


def test_scenes_and_captions_are_retrieved(method):
    found = evaluate_retrieval(method, open_source("world-rooms:test?objects=4-6&length=12&points=12"), resamples=2)
    assert any("recall" in name or "R@" in name for name in found.metrics)
