"""A whole training step of TCL against the plain form of what lies above its towers.

    uv run python -m tools.bench.tcl_step                   # batches of 16, 32 and 64
    uv run python -m tools.bench.tcl_step --device cuda

Both have the same towers, weights and batch, with a queue of the published length: forward, backward, AdamW, and the
copies' move. The plain form, as released, contrasts through log-softmaxes of N x (N + Q) and, for local vectors, of
N x L x (1 + N L) numbers; gives logits of the vocabulary for all tokens, masked or not; and moves copies parameter by
parameter. Before the clock runs, the losses of both are compared.

Time: medians of interleaved steps in one process. Memory: growth of the peak of a fresh process in its second step.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from collimate.encoders import Bert, TimmImageEncoder
from collimate.losses.masked_tokens import choose_tokens, hide_tokens
from collimate.processing import ClipTokenizer, ImageProcessor
from collimate.training import Optimization
from collimate_vision_language import TCL
from collimate_vision_language.tcl.alignment import Locals, Pair
from tools.bench import _harness
from tools.bench.tcl_local import ALPHA, WORDS, released_terms

OURS, PLAIN = "collimate", "plain form"
SIDE, PATCH, WIDTH, LAYERS, QUEUE = 96, 16, 192, 4, 65536
TOKENIZER = ClipTokenizer(WORDS + 1)
VOCABULARY = TOKENIZER.vocab_size + 1  # and the token that hides


class Plain(TCL):
    """The same method, written as released above the towers."""

    def _masked_modelling(self, batch: dict[str, Any], mask: Tensor, image: Any, taught: Any) -> dict[str, Tensor]:
        text = self._masked_text(batch, mask)
        bert: Any = self.encoders["text"]
        copy: Any = self.momentum_encoders["text"]
        logits = bert.token_logits(bert.fuse(bert(text.ids, mask), image).tokens)
        with torch.no_grad():
            soft = copy.token_logits(copy.fuse(copy(text.ids, mask), taught).tokens).softmax(-1)
        told = cross_entropy(logits.flatten(0, 1), text.labels.flatten())
        taught_loss = -(logits.log_softmax(-1) * soft).sum(-1)[text.chosen].mean()
        return {"masked": (1 - ALPHA) * told + ALPHA * taught_loss}

    def losses(self, embeddings: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        features, momentum = (
            Pair(*(normalize(embeddings[f"{name}{suffix}"], dim=1) for name in ("image", "text")))
            for suffix in ("", "_key")
        )
        keys = Pair(*(torch.cat([getattr(momentum, name), self.queue[name]]) for name in ("image", "text")))
        local = Locals(embeddings["image_local"], embeddings["text_local"], embeddings["text_mask"][:, 1:])
        scale = 1 / self.temp
        aligned = released_terms(features, momentum, keys, local, scale)
        self.queue.add(None, image=momentum.image, text=momentum.text)
        matching, _ = self._matching(embeddings, features, momentum, scale, None, batch)
        return {"ita": aligned, "itm": matching, "mlm": embeddings["masked"]}

    @torch.no_grad()
    def after_optimizer_step(self) -> None:
        assert self.temperature_bounds is not None
        self.temp.clamp_(*self.temperature_bounds)
        for follower, leader in (
            (self.momentum_encoders, self.encoders),
            (self.momentum_projections, self.projections),
        ):
            for theirs, own in zip(leader.parameters(), follower.parameters(), strict=True):
                own.data = own.data * self.momentum + theirs.data * (1 - self.momentum)


def method(whose: str, device: str) -> TCL:
    """A small TCL without dropout, so that both forms can be compared."""
    torch.manual_seed(0)
    sizes = {"patch_size": PATCH, "embed_dim": WIDTH, "depth": LAYERS, "num_heads": 3}
    bert = Bert(
        vocab_size=VOCABULARY,
        context_length=WORDS + 1,
        width=WIDTH,
        layers=LAYERS,
        heads=3,
        hidden=4 * WIDTH,
        fusion_layer=LAYERS // 2,
        cross_width=WIDTH,
        token_head=True,
        dropout=0.0,
    )
    image = TimmImageEncoder("vit_base_patch16_224", image_size=SIDE, model_args=sizes)
    form = TCL if whose == OURS else Plain
    return form(image, bert, ImageProcessor(SIDE), TOKENIZER, queue_size=QUEUE, alpha=ALPHA).to(device)


def drawn(samples: int, device: str) -> dict[str, Tensor]:
    """A batch with everything that is else drawn; texts of 8 to 25 tokens."""
    generator = torch.Generator().manual_seed(0)
    images, views = torch.randint(0, 256, (2, samples, 3, SIDE, SIDE), generator=generator, dtype=torch.uint8)
    lengths = torch.randint(8, WORDS + 2, (samples, 1), generator=generator)
    real = torch.arange(WORDS + 1) < lengths
    text = torch.randint(1000, 49000, (samples, WORDS + 1), generator=generator) * real
    text.scatter_(1, lengths - 1, TOKENIZER.end_id)
    eligible = real.clone()
    eligible[:, 0] = False
    masked = hide_tokens(text, choose_tokens(eligible, generator=generator), TOKENIZER.mask_id, VOCABULARY, generator)
    wrong = torch.arange(samples).roll(1)
    batch = {
        "image": images,
        "image_view": views,
        "text": text,
        "masked_text": masked.ids,
        "masked_labels": masked.labels,
        "negative_image": wrong,
        "negative_text": wrong,
    }
    return {name: rows.to(device) for name, rows in batch.items()}


def step(whose: str, samples: int, device: str) -> Callable[[], float]:
    """One optimizer step; gives its loss."""
    trained, batch = method(whose, device).train(), drawn(samples, device)
    optimizer = Optimization(lr=1e-4, options={"fused": True}).optimizer(trained)

    def run() -> float:
        optimizer.zero_grad()
        loss = trained.total_loss(trained.loss_terms(batch))
        loss.backward()
        optimizer.step()
        trained.after_optimizer_step()
        return float(loss.detach())

    return run


def compare(samples: int, device: str, repeats: int) -> dict[str, Any]:
    """Time and memory of both, and our share of the plain form's."""
    steps = {whose: step(whose, samples, device) for whose in (OURS, PLAIN)}
    for _ in range(2):  # the second step has the first one's copies and queue
        torch.testing.assert_close(*(torch.tensor(run()) for run in steps.values()), rtol=1e-3, atol=1e-4)
    seconds = _harness.interleaved(steps, repeats, warm_up=0)
    del steps
    mib = {whose: memory(whose, samples, device) / 2**20 for whose in (OURS, PLAIN)}
    row: dict[str, Any] = {"N": samples, f"{OURS} s": seconds[OURS], f"{PLAIN} s": seconds[PLAIN]}
    row["times as fast"] = seconds[PLAIN] / seconds[OURS]
    return row | {f"{OURS} MiB": mib[OURS], f"{PLAIN} MiB": mib[PLAIN], "memory ratio": mib[OURS] / mib[PLAIN]}


def memory(whose: str, samples: int, device: str) -> int:
    """Bytes by which the peak of a fresh process grows in one step."""
    return _harness.extra_peak_memory("tools.bench.tcl_step", "--measure", whose, str(samples), device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 32, 64], help="samples to compare at")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        whose, samples, device = options.measure
        step(whose, 2, device)()  # libraries load and thread pools start before the measurement
        run = step(whose, int(samples), device)
        run()
        print(_harness.peak_growth(run))
        return
    rows = [compare(samples, options.device, options.repeats) for samples in options.batches]
    sizes = {"side": SIDE, "patch": PATCH, "width": WIDTH, "layers": LAYERS, "vocabulary": VOCABULARY, "queue": QUEUE}
    _harness.report("tcl_step_cuda" if options.device != "cpu" else "tcl_step", rows, **sizes)


if __name__ == "__main__":
    main()
