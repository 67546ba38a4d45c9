"""The gradient cache gives the full batch's loss and gradients."""

import pytest
import torch
from torch import Tensor

from collimate.training.gradient_cache import embed_in_chunks, split

from .toy import Toy, toy_batch


def loss_and_gradients(method: Toy, batch: dict[str, Tensor], chunk: int | None) -> tuple[Tensor, list[Tensor]]:
    method.gradient_cache = chunk
    loss = method.total_loss(method.loss_terms(batch))
    return loss.detach(), list(torch.autograd.grad(loss, list(method.parameters())))


@pytest.mark.parametrize("chunk", [1, 3, 4, 12, 50])
def test_equals_the_full_batch(chunk: int):
    torch.manual_seed(0)
    method, batch = Toy().double(), {k: v.double() if v.is_floating_point() else v for k, v in toy_batch(12).items()}
    full, cached = loss_and_gradients(method, batch, None), loss_and_gradients(method, batch, chunk)
    torch.testing.assert_close(cached[0], full[0], rtol=1e-6, atol=0)
    for a, b in zip(cached[1], full[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


def test_dropout_agrees_between_the_passes():
    """The second pass must draw what the first drew: compare with plain autograd over the same chunks."""
    method, batch = Toy(dropout=0.5), toy_batch(12)
    torch.manual_seed(3)
    parts = [method.embed(chunk) for chunk, _ in split(batch, 4)]
    embeddings = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    plain = torch.autograd.grad(method.total_loss(method._terms(embeddings, batch)), list(method.parameters()))
    torch.manual_seed(3)
    _, cached = loss_and_gradients(method, batch, 4)
    for a, b in zip(cached, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_the_rng_goes_on_as_if_nothing_were_recomputed():
    method, batch = Toy(dropout=0.5), toy_batch(12)
    torch.manual_seed(3)
    for chunk, _ in split(batch, 4):
        method.embed(chunk)
    expected = torch.rand(3)
    torch.manual_seed(3)
    loss_and_gradients(method, batch, 4)
    torch.testing.assert_close(torch.rand(3), expected)


def test_batch_norm_averages_are_updated_once():
    batch = toy_batch(12)
    once, twice = Toy(batch_norm=True), Toy(batch_norm=True)
    for chunk, _ in split(batch, 4):
        once.embed(chunk)
    twice.load_state_dict(once.state_dict())
    for name, buffer in Toy(batch_norm=True).named_buffers():
        twice.get_buffer(name).copy_(buffer)
    torch.manual_seed(0)
    # The same weights, fresh averages: after one cached step the averages are those of one pass.
    loss_and_gradients(twice, batch, 4)
    reference = Toy(batch_norm=True)
    reference.load_state_dict({**twice.state_dict(), **dict(Toy(batch_norm=True).named_buffers())})
    for chunk, _ in split(batch, 4):
        reference.embed(chunk)
    for name, buffer in reference.named_buffers():
        torch.testing.assert_close(twice.get_buffer(name), buffer)


def test_keeps_the_activations_of_one_chunk_only():
    saved = []
    batch = toy_batch(64)
    method = Toy(width=256)

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    def kept(chunk: int | None) -> int:
        saved.clear()
        method.gradient_cache = chunk
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            embeddings = method._embeddings(batch)
        assert embeddings["image"].shape == (64, 256)
        return sum(saved)

    assert kept(8) < kept(None) / 10


def test_refuses_embeddings_that_are_not_per_sample():
    method = Toy()
    with pytest.raises(ValueError, match="per-sample"):
        embed_in_chunks(lambda batch: {"mean": batch["image"].mean()}, toy_batch(4), 2, method)


def test_chunks_cut_tensors_and_lists_and_keep_the_rest():
    batch = {"image": torch.zeros(5, 2), "key": list("abcde"), "note": "same"}
    chunks = [chunk for chunk, _ in split(batch, 2)]
    assert [chunk["key"] for chunk in chunks] == [["a", "b"], ["c", "d"], ["e"]]
    assert all(chunk["note"] == "same" for chunk in chunks)
