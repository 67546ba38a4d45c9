"""Dense captioning: a sentence for every object of a scene, as a fine-tuning of `SceneGraphVLP`.

Chen et al. 2021, Scan2Cap, arXiv 2012.02206, section 4.3; the two recurrent layers are those of Anderson et al. 2018,
arXiv 1707.07998. With g_m the object that is spoken of and g_k all objects of its scene, after the graph, and the
word w_(t-1) before,

    h1_t = GRU([w_(t-1), g_m, h2_(t-1)], h1_(t-1)),      a_k = softmax over k of v . tanh(V g_k + U h1_t)
    h2_t = GRU([h1_t, sum_k a_k g_k], h2_(t-1)),         the next word: softmax(MLP(h2_t)).

Loss: cross-entropy of the next word, the end among them, over all words of a batch, as in Scan2Cap.

Departures: the weights a_k go to every object of the scene, where Scan2Cap has an object's neighbours, as the graph has
told each of its own. Text starts with a learned vector, as tokenizers need have no start.

Shape legend: B scenes, S sentences of a scene, M objects, L tokens, N sentences or objects that are spoken of, V ids, D
width.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from collimate.encoding import Encoding
from collimate.losses.masked_tokens import masked_token_losses, mean_of_chosen
from collimate.training import Method
from collimate_3d.graphs.attention import masked_softmax
from collimate_3d.scene_graph_vlp.fusion import head
from collimate_3d.scene_graph_vlp.method import SceneGraphVLP
from collimate_3d.scenes.processing import Referrals, Scenes, unpacked_referrals, unpacked_scenes


class SceneCaptions(Method):
    """A scene-language model with a head that writes. A batch holds `scene` and `referrals`, captions of their targets.

    Args:
        model: what it is built on.
        hidden: of both recurrent layers, 512 in Scan2Cap.
        word_width: of word vectors, 300 there.
        dropout: of the head, in training.
        pretrained: a folder of a trained `SceneGraphVLP` of the same sizes, with whose weights to begin.
    """

    modalities = ("scene", "referrals")

    def __init__(
        self,
        model: SceneGraphVLP,
        hidden: int = 512,
        word_width: int = 300,
        dropout: float = 0.1,
        pretrained: str | None = None,
    ) -> None:
        super().__init__()
        self.processors = {name: model.processors[name] for name in self.modalities}
        self.model = model
        self.writer = CaptionWriter(model.graph.width, model.tokenizer.vocab_size, hidden, word_width, dropout)
        if pretrained is not None:
            from collimate.checkpoints import load

            model.load_state_dict(load(pretrained).state_dict())

    def forward(self, modality: str, inputs: Tensor, mask: Tensor | None = None) -> Encoding:
        return self.model(modality, inputs, mask)

    @torch.no_grad()
    def describe(self, scene: Float[Tensor, "B M W"]) -> list[list[str]]:
        """Of each scene as the processor makes it, a sentence for each object, by the likeliest word each time."""
        seen = unpacked_scenes(scene.to(self.device))
        nodes = self.model.nodes(seen, self.model.objects(seen))
        scenes, places = seen.given.nonzero(as_tuple=True)
        referrals: Any = self.processors["referrals"]
        tokenizer = referrals.tokenizer
        ids = self.writer.write(nodes, seen.given, scenes, places, tokenizer.context_length - 1, tokenizer.end_id)
        found: list[list[str]] = [[] for _ in nodes]
        for number, row in zip(scenes.tolist(), ids.cpu(), strict=True):
            ends = (row == tokenizer.end_id).nonzero()[:1, 0]
            found[number].append(tokenizer.decode(row[: int(ends) if len(ends) else len(row)]))
        return found

    def embed(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Of each scene the sum of the losses of its words, how many these are, and how many were told rightly."""
        scene, told = unpacked_scenes(batch["scene"]), unpacked_referrals(batch["referrals"])
        nodes = self.model.nodes(scene, self.model.objects(scene))
        scenes, sentences, places = _spoken_of(scene, told)
        ids = told.ids[scenes, sentences]
        words = self.model.tokenizer.mask(ids)
        logits = self.writer(nodes, scene.given, scenes, places, ids)
        losses = masked_token_losses(logits[words], ids[words])
        row = scenes[words.nonzero()[:, 0]]
        right = (logits[words].argmax(-1) == ids[words]).to(losses.dtype)
        nothing = losses.new_zeros(len(nodes))
        return {
            "losses": nothing.index_add(0, row, losses),
            "right": nothing.index_add(0, row, right),
            "words": nothing.index_add(0, row, torch.ones_like(right)),
        }

    def losses(self, embeddings: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        words = embeddings["words"].long()
        self.statistics = {"accuracy/words": embeddings["right"].sum() / words.sum().clamp_min(1)}
        return {"caption": mean_of_chosen(embeddings["losses"], words)}


class CaptionWriter(nn.Module):
    """The recurrent layers; see the module.

    Args:
        width: D.
        vocab_size: V.
        hidden: of both layers.
        word_width: of word vectors.
        dropout: in training.
    """

    def __init__(self, width: int, vocab_size: int, hidden: int, word_width: int, dropout: float) -> None:
        super().__init__()
        self.words = nn.Embedding(vocab_size, word_width)
        self.start = nn.Parameter(torch.zeros(word_width))
        self.reader = nn.GRUCell(word_width + width + hidden, hidden)
        self.speaker = nn.GRUCell(hidden + width, hidden)
        self.seen, self.asked = nn.Linear(width, hidden), nn.Linear(hidden, hidden, bias=False)
        self.weight = nn.Linear(hidden, 1, bias=False)
        self.next = head(hidden, vocab_size, dropout)
        self.hidden = hidden

    def forward(
        self,
        nodes: Float[Tensor, "B M D"],
        given: Bool[Tensor, "B M"],
        scenes: Int64[Tensor, " N"],
        places: Int64[Tensor, " N"],
        ids: Int64[Tensor, "N L"],
    ) -> Float[Tensor, "N L V"]:
        """Logits of every token of sentences, each told by those before it.

        Args:
            nodes: objects after the graph.
            given: which rows are objects.
            scenes, places: of the objects that are spoken of.
            ids: what is said of them.
        """
        state = _Step(self, nodes, given, scenes, places)
        before = torch.cat([self.start.expand(len(ids), 1, -1), self.words(ids[:, :-1])], 1)
        return torch.stack([state.next(word) for word in before.unbind(1)], 1)

    def write(
        self,
        nodes: Float[Tensor, "B M D"],
        given: Bool[Tensor, "B M"],
        scenes: Int64[Tensor, " N"],
        places: Int64[Tensor, " N"],
        length: int,
        end: int,
    ) -> Int64[Tensor, "N L"]:
        """The likeliest next tokens, until all have ended or are so long; after an end anything may stand.

        Args:
            nodes, given, scenes, places: as of `forward`.
            length: L at most.
            end: the id that ends a sentence.
        """
        state = _Step(self, nodes, given, scenes, places)
        word = self.start.expand(len(scenes), -1)
        said: list[Tensor] = []
        ended = torch.zeros(len(scenes), dtype=torch.bool, device=nodes.device)
        while len(said) < length and not bool(ended.all()):
            said.append(state.next(word).argmax(-1))
            ended |= said[-1] == end
            word = self.words(said[-1])
        return torch.stack(said, 1) if said else torch.zeros(len(scenes), 0, dtype=torch.int64, device=nodes.device)


class _Step:
    """The state of sentences that are being written."""

    def __init__(self, writer: CaptionWriter, nodes: Tensor, given: Tensor, scenes: Tensor, places: Tensor) -> None:
        self.writer, self.others, self.there = writer, nodes[scenes], given[scenes]
        self.own, self.keys = nodes[scenes, places], writer.seen(nodes)[scenes]
        self.read = self.spoken = nodes.new_zeros(len(scenes), writer.hidden)

    def next(self, word: Float[Tensor, "N w"]) -> Float[Tensor, "N V"]:
        """Logits of what follows a word."""
        writer = self.writer
        self.read = writer.reader(torch.cat([word, self.own, self.spoken], 1), self.read)
        logits = writer.weight((self.keys + writer.asked(self.read)[:, None]).tanh())[..., 0]
        weights = masked_softmax(logits[:, None, None], self.there)[:, 0]
        context = (weights @ self.others)[:, 0]
        self.spoken = writer.speaker(torch.cat([self.read, context], 1), self.spoken)
        return writer.next(self.spoken)


def _spoken_of(scene: Scenes, told: Referrals) -> tuple[Int64[Tensor, " N"], Int64[Tensor, " N"], Int64[Tensor, " N"]]:
    """The scene and the sentence, by their numbers, and the place of its target, of each sentence that has one."""
    target = (told.target[:, :, None] == scene.ids[:, None]) & told.given[:, :, None] & scene.given[:, None]
    scenes, sentences, places = target.nonzero(as_tuple=True)
    return scenes, sentences, places
