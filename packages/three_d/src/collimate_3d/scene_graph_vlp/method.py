"""SG-VLP-style pre-training: a scene graph guides what objects, words, sentences and scenes say of each other.

Liu et al. 2024, 3D Scene Graph Guided Vision-Language Pre-training, arXiv 2411.18666. No code was published, and the
equations of its graph module, its temperatures and loss weights were not at hand: this is a method in the style of
SG-VLP, built on 3D-VLP (Jin et al. 2023, CVPR; leolyj/3D-VLP), whose framework and tasks the paper extends. What is
marked [ours] is a decision of this project and no claim on the paper.

With unit vectors o_m of object m before the graph and g_m after it, w_l of words, s_i of sentences, z_b of a scene (the
mean of its nodes [ours]) and u_b of its caption, and multipliers s of the cosines:

    word         words against the objects of their scene and objects against the words of a sentence: o_m, w_l
    sentence     sentences against the objects of all scenes, objects against all sentences: g_m, s_i
    scene        CLIP's loss of z_b and u_b
    grounding    cross-entropy over a scene's objects that have read the sentence, at its target
    text_class   cross-entropy of the target's class, told by the sentence alone
    masked_words     cross-entropy of hidden words, told by words that have seen the objects
    masked_objects   cross-entropy of hidden objects' classes, told by objects that have read the sentence
    hidden_features  where `momentum` is given: how far, in L1, hidden objects that have read a sentence are from what
                     momentum copies of the graph and of the cross-attention, which see everything, make of them

Objects are a cloud's vector plus a matrix of 27 numbers on where its box lies. `word` and `sentence` are in
`collimate_3d.scene_graph_vlp.objectives`; `sentence` and `scene` meet across ranks, exactly.

Departures from 3D-VLP, each [ours]:
- Objects come by their masks, as in 3D-VisTA (Zhu et al. 2023), not from a detector; so there is no detection loss, and
  a sentence's target is its object, not the best of several proposals.
- The graph (`TripletGraph`: k nearest objects, and the relations that the data have) stands in the place of
  attention among objects, which `OffsetAttention` is. Annotated predicates are no input: sentences are made of them.
- Contrasts run in both directions; they are means over the pairs that exist, where 3D-VLP divides by all words and all
  proposals, padding too; and what may well be true is no negative (an object of the class that a word names, another
  sentence on the same object, an object of another scene that is of the target's class).
- An object's score has s g_m s_i beside the number of the matching head: what a relation to another object says is a
  product of the sentence and of what the graph has told the object, which layers that add what they read learn slowly.
- Temperatures are logarithms of multipliers, held to at most 100, where 3D-VLP divides by one that it holds to
  [0.001, 0.5]; one each for words, sentences and scenes.
- Hidden words: the mean runs over them alone. 3D-VLP's runs over all words before it is masked, so that the mask has no
  effect. Nouns are hidden sentence by sentence with the given probability, where 3D-VLP draws once a batch.
- Hidden objects: they keep their places, and the token that stands for them is learned and saved; in 3D-VLP it is
  neither. Of the objects that are hidden those count that the sentence names. The distance to momentum copies is no
  part of the loss unless asked for; it compares each object with itself, where 3D-VLP compares rows of another order,
  and the copies move once a step, not once a layer.
- Layer norms where 3D-VLP's heads have batch norms, so that no scene sees another.
- The weights of terms are the recipe's (`optimization.loss_weights`), not constants here.

Shape legend: B scenes of this rank, M objects of a scene, S sentences of a scene, L tokens, N = B S, D width, E joint
width.
"""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from collimate.data import OneCaption
from collimate.encoders import Encoder
from collimate.encoding import Encoding
from collimate.losses import clip_loss
from collimate.losses.composition import composed
from collimate.losses.masked_tokens import choose_tokens, masked_token_losses, mean_of_chosen
from collimate.losses.negatives import text_ids
from collimate.processing import Tokenizer
from collimate.training import Method
from collimate.training.momentum import follow, momentum_copy
from collimate_3d.graphs.base import GraphLayers
from collimate_3d.graphs.geometry import CLUES, corners, position_clues
from collimate_3d.scene_graph_vlp.fusion import CrossAttention, head
from collimate_3d.scene_graph_vlp.objectives import (
    Referred,
    mentions_of,
    named_object_losses,
    referral_loss,
)
from collimate_3d.scenes.processing import (
    ReferralProcessor,
    Referrals,
    SceneProcessor,
    Scenes,
    unpacked_referrals,
    unpacked_scenes,
)


@composed(
    similarity="cosine, of objects with words, of objects in their graph with sentences, of scenes with texts",
    targets="every word, sentence and text that means it",
    negatives="other objects of the scene; sentences and scenes of all ranks, but those of the same meaning",
)
class SceneGraphVLP(Method):
    """Scenes of objects, and language at three levels; see the module.

    A batch holds `scene`, `referrals` (which a sample may lack) and `text`, a caption of the scene (`text_given` where
    one may be missing). Encoded, a scene has z_b as `pooled` and the g_m as tokens; a text its vector and those of its
    words; the referrals of a scene the vectors of their sentences as tokens, and the mean as `pooled`.

    Args:
        object_encoder: clouds of single objects, (B, P, 6), to vectors.
        text_encoder: of sentences and captions; its tokens are words.
        graph: over the objects.
        scene_processor: how scenes become inputs; its classes are those that are told of objects.
        tokenizer: of all texts.
        embed_dim: E.
        sentences: S, of each scene in a batch.
        sentence_length: L; captions are as long as the tokenizer says. 3D-VLP has 30 for what it writes.
        heads, fusion_layers: of the cross-attention between objects and words.
        dropout: in training.
        hide_words: the share of words that are hidden.
        hide_nouns: the probability that the words for a sentence's target are hidden too.
        hide_objects: the share of objects that are hidden.
        init_logit_scale: of all three multipliers.
        max_logit_scale: which they do not exceed.
        momentum: of the copies that hidden objects are to equal, 0.995 in 3D-VLP; None for no such term.
    """

    modalities = ("scene", "text", "referrals")
    tokenizer: Tokenizer
    captions = MappingProxyType({"text": OneCaption(optional=True)})
    optional = ("referrals",)

    def __init__(
        self,
        object_encoder: Encoder,
        text_encoder: Encoder,
        graph: GraphLayers,
        scene_processor: SceneProcessor,
        tokenizer: Tokenizer,
        embed_dim: int = 128,
        sentences: int = 8,
        sentence_length: int = 32,
        heads: int = 4,
        fusion_layers: int = 2,
        dropout: float = 0.1,
        hide_words: float = 0.2,
        hide_nouns: float = 0.5,
        hide_objects: float = 0.75,
        init_logit_scale: float = 1 / 0.07,
        max_logit_scale: float = 100.0,
        momentum: float | None = None,
    ) -> None:
        super().__init__()
        width = graph.width
        referrals = ReferralProcessor(tokenizer.shaped(sentence_length), sentences)
        self.processors = {"scene": scene_processor, "text": tokenizer, "referrals": referrals}
        self.encoders = nn.ModuleDict({"object": object_encoder, "text": text_encoder})
        self.graph = graph
        self.object_features = nn.Linear(object_encoder.width, width)
        self.position_clues = nn.Linear(CLUES, width)
        self.object_norm = nn.LayerNorm(width)
        self.word_features = nn.Sequential(
            nn.Linear(text_encoder.width, width), nn.ReLU(), nn.Dropout(dropout), nn.LayerNorm(width)
        )
        self.projections = nn.ModuleDict(
            {
                "object": nn.Linear(width, embed_dim),
                "node": nn.Linear(width, embed_dim),
                "scene": nn.Linear(width, embed_dim),
                "word": nn.Linear(text_encoder.width, embed_dim),
                "sentence": nn.Linear(text_encoder.width, embed_dim),
            }
        )
        self.objects_read = CrossAttention(width, heads, fusion_layers, dropout)
        self.words_see = CrossAttention(width, heads, fusion_layers, dropout)
        classes = max(1, len(scene_processor.classes))
        self.match = head(width, 1, dropout)
        self.object_class = head(width, classes, dropout)
        self.word_head = head(width, max(tokenizer.vocab_size, tokenizer.mask_id + 1), dropout)
        self.text_class = nn.Linear(text_encoder.width, classes)
        self.hidden_object = nn.Parameter(torch.zeros(width))
        nn.init.normal_(self.hidden_object, std=0.02)
        self.tokenizer = tokenizer
        self.hide_words, self.hide_nouns, self.hide_objects = hide_words, hide_nouns, hide_objects
        self.word_logit_scale = nn.Parameter(torch.tensor(math.log(init_logit_scale)))  # the logarithm, as the others
        self.sentence_logit_scale = nn.Parameter(torch.tensor(math.log(init_logit_scale)))
        self.scene_logit_scale = nn.Parameter(torch.tensor(math.log(init_logit_scale)))
        self.max_logit_scale, self.momentum = max_logit_scale, momentum
        self.copies = None if momentum is None else momentum_copy(self._followed())

    # Encoding ---------------------------------------------------------------------------------------------

    def forward(self, modality: str, inputs: Tensor, mask: Tensor | None = None) -> Encoding:
        if modality == "scene":
            scene = unpacked_scenes(inputs)
            nodes = self.nodes(scene, self.objects(scene))
            pooled = self.projections["scene"](mean_of_rows(nodes, scene.given))
            return Encoding(pooled, self.projections["node"](nodes), scene.given)
        if modality == "referrals":
            told = unpacked_referrals(inputs)
            sentences = self.projections["sentence"](self.read(told.ids).pooled).unflatten(0, told.given.shape)
            return Encoding(mean_of_rows(sentences, told.given), sentences, told.given)
        text = self.encoders["text"](inputs, mask)
        return text.replace(
            pooled=self.projections["sentence"](text.pooled), tokens=self.projections["word"](text.tokens)
        )

    def objects(self, scene: Scenes) -> Float[Tensor, "B M D"]:
        """Objects before the graph: their clouds, and where they lie."""
        clouds = self.encoders["object"](scene.points[scene.given]).pooled
        features = self.object_features(clouds)
        rows = features.new_zeros(*scene.given.shape, features.shape[-1])
        rows[scene.given] = features
        return self.object_norm(rows + self.position_clues(position_clues(corners(scene.boxes))))

    def nodes(
        self, scene: Scenes, objects: Float[Tensor, "B M D"], seen: Bool[Tensor, "B M"] | None = None
    ) -> Float[Tensor, "B M D"]:
        """Objects after the graph, which runs over those that are seen; all unless given."""
        return self.graph(objects, scene.boxes, scene.given if seen is None else seen, scene.related)

    def read(self, ids: Int64[Tensor, "B S L"]) -> Encoding:
        """Every sentence by the text encoder, (N, ...)."""
        flat = ids.flatten(0, 1)
        mask = self.tokenizer.mask(flat).clone()
        mask[:, 0] = True  # a row without a sentence is read like one of a token, so that nothing is undefined
        return self.encoders["text"](flat, mask)

    @torch.no_grad()
    def ground(self, scene: Tensor, referrals: Tensor) -> tuple[Float[Tensor, "B S M"], Float[Tensor, "B S M"]]:
        """How well each object of a scene fits each of its sentences: by `matching`, and by the cosine.

        Args:
            scene, referrals: as the processors make them.

        Returns:
            both (B, S, M), -inf where there is no object; a larger one fits better.
        """
        seen, told = unpacked_scenes(scene.to(self.device)), unpacked_referrals(referrals.to(self.device))
        nodes, text = self.nodes(seen, self.objects(seen)), self.read(told.ids)
        matching, cosine = self.matching(nodes, text), self.cosines(nodes, text)
        absent = ~seen.given[:, None]
        return matching.masked_fill(absent, -torch.inf), cosine.masked_fill(absent, -torch.inf)

    def matching(self, nodes: Float[Tensor, "B M D"], text: Encoding) -> Float[Tensor, "B S M"]:
        """The logits of every object and sentence of a scene; any where there is no object."""
        sentences = len(text.pooled) // len(nodes)
        read = self.objects_read(
            nodes.repeat_interleave(sentences, 0), self.word_features(text.tokens), text.token_mask
        )
        told = self.match(read)[..., 0].unflatten(0, (len(nodes), sentences))
        return told + self.sentence_logit_scale.exp() * self.cosines(nodes, text)

    def cosines(self, nodes: Float[Tensor, "B M D"], text: Encoding) -> Float[Tensor, "B S M"]:
        """g_m s_i of every object and sentence of a scene."""
        node = normalize(self.projections["node"](nodes), dim=-1)
        sentence = normalize(self.projections["sentence"](text.pooled), dim=-1)
        return sentence.unflatten(0, (len(nodes), -1)) @ node.mT

    # Training ---------------------------------------------------------------------------------------------

    def embed(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        scene, told = unpacked_scenes(batch["scene"]), unpacked_referrals(batch["referrals"])
        objects, text = self.objects(scene), self.read(told.ids)
        nodes = self.nodes(scene, objects)
        words, sentences = text.tokens, text.pooled
        assert words is not None
        return {
            "object": self.projections["object"](objects),
            "node": self.projections["node"](nodes),
            "scene": self.projections["scene"](mean_of_rows(nodes, scene.given)),
            "word": self.projections["word"](words).unflatten(0, told.given.shape),
            "sentence": self.projections["sentence"](sentences).unflatten(0, told.given.shape),
            "text": self.encode("text", batch["text"]).pooled,
            "matching": self.matching(nodes, text),
            "text_class": self.text_class(sentences).unflatten(0, told.given.shape),
            **self._hidden_words(scene, nodes, told),
            **self._hidden_objects(scene, objects, told, text),
        }

    def losses(self, embeddings: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        scene, told = unpacked_scenes(batch["scene"]), unpacked_referrals(batch["referrals"])
        unit = {name: normalize(embeddings[name], dim=-1) for name in ("object", "node", "word", "sentence")}
        target = told.target[:, :, None] == scene.ids[:, None]
        target = target & told.given[:, :, None] & scene.given[:, None]
        found = target.any(-1)
        named = self._named_losses(unit, scene, told)
        scenes, sentences = found.nonzero(as_tuple=True)
        places = target[scenes, sentences].int().argmax(-1)
        referred = Referred(unit["sentence"][scenes, sentences], scenes, places, scene.labels[scenes, places])
        matching = embeddings["matching"][scenes, sentences].masked_fill(~scene.given[scenes], -torch.inf)
        self.statistics = {
            "accuracy/grounding": (matching.argmax(-1) == places).float().sum() / found.sum().clamp_min(1),
            "scale/sentence": self.sentence_logit_scale.detach().exp(),
        }
        told_class = embeddings["text_class"][scenes, sentences]
        known = referred.label >= 0
        terms = {
            "word": named,
            "sentence": referral_loss(
                referred, unit["node"], scene.given, scene.labels, self.sentence_logit_scale.exp()
            ),
            "scene": self._scene_loss(embeddings, batch),
            "grounding": _mean_loss(matching, places, torch.ones_like(known)),
            "text_class": _mean_loss(told_class, referred.label.clamp_min(0), known),
            "masked_words": mean_of_chosen(embeddings["hidden_words"], embeddings["hidden_word_count"]),
            "masked_objects": mean_of_chosen(embeddings["hidden_objects"], embeddings["hidden_object_count"]),
        }
        if self.copies is not None:
            terms["hidden_features"] = mean_of_chosen(embeddings["hidden_distance"], embeddings["hidden_count"])
        return terms

    @torch.no_grad()
    def after_optimizer_step(self) -> None:
        super().after_optimizer_step()
        if self.copies is not None and self.momentum is not None:
            follow(self.copies, self._followed(), self.momentum)

    # Terms ------------------------------------------------------------------------------------------------

    def _named_losses(self, unit: dict[str, Tensor], scene: Scenes, told: Referrals) -> Tensor:
        mentions = mentions_of(told.names, scene.ids)
        real = self.tokenizer.mask(told.ids) & told.given[..., None]
        alike = (scene.labels[:, :, None] == scene.labels[:, None]) & (scene.labels >= 0)[:, None]
        losses = named_object_losses(
            unit["word"], unit["object"], mentions, scene.given, real, self.word_logit_scale.exp(), alike
        )
        totals = (losses.by_word + losses.by_object).sum((1, 2)) / 2
        return mean_of_chosen(totals, losses.named.sum((1, 2)))

    def _scene_loss(self, embeddings: dict[str, Tensor], batch: dict[str, Any]) -> Tensor:
        """CLIP's loss of the scenes that have a caption; scenes of equal captions are no negatives."""
        given = batch.get("text_given", torch.ones(len(embeddings["text"]), dtype=torch.bool, device=self.device))
        ids = text_ids(batch["text"])[given]
        return clip_loss(embeddings["scene"][given], embeddings["text"][given], self.scene_logit_scale.exp(), ids=ids)

    def _hidden_words(self, scene: Scenes, nodes: Float[Tensor, "B M D"], told: Referrals) -> dict[str, Tensor]:
        """Of each scene, the sum of the losses of hidden words, and how many these are."""
        real = self.tokenizer.mask(told.ids) & told.given[..., None]
        real = real & (told.ids != self.tokenizer.end_id) & (told.ids != self.tokenizer.start_id)
        nouns = (told.names == told.target[..., None]) & real
        nouns = nouns & (torch.rand(told.given.shape, device=nouns.device) < self.hide_nouns)[..., None]
        chosen = choose_tokens(real, self.hide_words) | nouns
        text = self.read(told.ids.masked_fill(chosen, self.tokenizer.mask_id))
        sentences = told.given.shape[1]
        seen = self.words_see(
            self.word_features(text.tokens),
            nodes.repeat_interleave(sentences, 0),
            scene.given.repeat_interleave(sentences, 0),
        ).unflatten(0, told.given.shape)
        losses = masked_token_losses(self.word_head(seen[chosen]), told.ids[chosen])
        row = chosen.nonzero()[:, 0]
        return {
            "hidden_words": losses.new_zeros(len(nodes)).index_add(0, row, losses),
            "hidden_word_count": chosen.sum((1, 2)),
        }

    def _hidden_objects(
        self, scene: Scenes, objects: Float[Tensor, "B M D"], told: Referrals, text: Encoding
    ) -> dict[str, Tensor]:
        """Of each scene, the sum of the losses of hidden objects that its sentences name, and how many these are."""
        hidden = (torch.rand(scene.given.shape, device=objects.device) < self.hide_objects) & scene.given
        clues = self.hidden_object + self.position_clues(position_clues(corners(scene.boxes)))
        nodes = torch.where(hidden[..., None], clues, self.nodes(scene, objects, scene.given & ~hidden))
        sentences = told.given.shape[1]
        read = self.objects_read(
            nodes.repeat_interleave(sentences, 0), self.word_features(text.tokens), text.token_mask
        ).unflatten(0, told.given.shape)
        named = (told.names[..., None] == scene.ids[:, None, None]).any(2) | (
            told.target[..., None] == scene.ids[:, None]
        )
        counted = named & hidden[:, None] & told.given[..., None] & (scene.labels >= 0)[:, None]
        row, _, place = counted.nonzero(as_tuple=True)
        losses = cross_entropy(self.object_class(read[counted]), scene.labels[row, place], reduction="none")
        found = {
            "hidden_objects": losses.new_zeros(len(nodes)).index_add(0, row, losses),
            "hidden_object_count": counted.sum((1, 2)),
        }
        if self.copies is None:
            return found
        compared = (hidden[:, None] & told.given[..., None]).to(read.dtype)
        distance = (read - self._seen_by_copies(scene, objects, text).view_as(read)).abs().mean(-1)
        return found | {
            "hidden_distance": (distance * compared).sum((1, 2)),
            "hidden_count": compared.sum((1, 2)).long(),
        }

    @torch.no_grad()
    def _seen_by_copies(self, scene: Scenes, objects: Float[Tensor, "B M D"], text: Encoding) -> Float[Tensor, "N M D"]:
        """Objects that have read each sentence, by the copies, and with all objects in sight."""
        copies: Any = self.copies
        nodes = copies["graph"](objects, scene.boxes, scene.given, scene.related)
        sentences = len(text.pooled) // len(nodes)
        return copies["objects_read"](
            nodes.repeat_interleave(sentences, 0), self.word_features(text.tokens), text.token_mask
        )

    def _followed(self) -> nn.ModuleDict:
        """What the copies are of."""
        return nn.ModuleDict({"graph": self.graph, "objects_read": self.objects_read})


def mean_of_rows(rows: Float[Tensor, "B M D"], given: Bool[Tensor, "B M"]) -> Float[Tensor, "B D"]:
    """The mean of the rows that are there; 0 where there are none."""
    return (rows * given[..., None]).sum(1) / given.sum(1, keepdim=True).clamp_min(1)


def _mean_loss(logits: Float[Tensor, "n C"], labels: Int64[Tensor, " n"], counted: Bool[Tensor, " n"]) -> Tensor:
    """The mean cross-entropy over what is counted, on all ranks."""
    losses = cross_entropy(logits, labels, reduction="none") * counted
    return mean_of_chosen(losses, counted.long())
