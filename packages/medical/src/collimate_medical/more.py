"""MoRE: X-rays, ECGs and the reports of both in one space.

Thapa et al. 2024, MoRE, arXiv 2410.16239; svthapa/MoRE. The loss is that of `collimate_medical.anchored`,

    L = L_tx + L_te,    t the report of X-ray and ECG together, x the X-ray, e the ECG, 1/τ = 50 at the start,

on two vision transformers with DropKey (`ImageTransformer`, `ECGTransformer`) and a biomedical RoBERTa with low-rank
updates, each with a projection of two matrices and batch norms (`NormedProjection`).

Departures, none in the numbers of published weights, which `from_official` loads:
- τ learns. In the released code the optimizer never sees it, so that it stays at 0.02: `learn_temperature=False`.
- A report's vector is the mean over its own tokens. The released code averages all 512 positions, padding included,
  for which its weights were trained: `pool_padding=True`.
- Keys are dropped in shares that fall from 0.3 to 0, as the paper says; the released code has 0.3 in all layers.
- Of the text tower, biases stay as they are, where peft's `bias="all"` frees them; wrap it in `LoRA` or leave it whole.
- A batch may lack X-rays or ECGs (`xray_given`, `ecg_given`): each term runs over those that have both sides, and what
  stands in for the others is never encoded, so that it is in no batch norm's statistics.
- The softmax runs over the samples of all ranks with exact gradients; batch norms keep to their rank.

Shape legend: n samples of this rank, L text tokens, W a tower's width, D joint width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from collimate.encoders import Encoder, Projection
from collimate.encoding import Encoding
from collimate.losses.composition import composed
from collimate.losses.negatives import text_ids
from collimate.processing import Processor
from collimate.training import Method
from collimate_medical.anchored import TEMPERATURE, anchored_losses

PATIENT = "patient.cls"
"""The key of a sample under which its patient's number lies: any number that tells patients apart, and nothing else."""

_OFFICIAL = {
    "xray_model.vit_model.": "encoders.xray.",
    "ecg_model.vit_model.": "encoders.ecg.",
    "projector_xray_text.": "projections.xray.",
    "projector_xray.": "projections.xray.",
    "projector_ecg_text.": "projections.ecg.",
    "projetor_ecg_text.": "projections.ecg.",
    "projector_text.": "projections.text.",
    "text_model.base_model.model.": "encoders.text.encoder.model.",
}
"""The official names' beginnings, with one as the released code misspells it, and ours."""


class NormedProjection(Projection):
    """Two matrices without bias, each followed by a batch norm, with a ReLU between. Tokens are not projected.

    Args:
        width: W.
        dim: D.
        hidden: width of the hidden layer; W if None.
    """

    def __init__(self, width: int, dim: int, hidden: int | None = None) -> None:
        super().__init__()
        self.width, self.dim = width, dim
        self.layers = nn.Sequential(_stage(width, hidden or width), nn.ReLU(), _stage(hidden or width, dim))

    def project(self, encoding: Encoding) -> Encoding:
        return Encoding(self(encoding.pooled))

    def forward(self, vectors: Float[Tensor, "n W"]) -> Float[Tensor, "n D"]:
        return self.layers(vectors)


@composed(
    similarity="cosine",
    targets="own report, for each of X-ray and ECG",
    weights="terms by what is given",
    negatives="those of other patients and texts of all ranks",
)
class MoRE(Method):
    """Three towers; reports find X-rays and ECGs, and those find reports.

    A batch holds `xray`, `ecg` and `text`, and, as one of the first two may be missing, `xray_given` and `ecg_given`,
    (n,) bool.

    Args:
        xray_encoder: the X-ray tower.
        ecg_encoder: the ECG tower.
        text_encoder: the tower of reports.
        xray_processor: how X-rays become the X-ray tower's input.
        ecg_processor: how ECGs become the ECG tower's input.
        tokenizer: how reports become the text tower's input.
        embed_dim: D, the width of the joint space.
        init_logit_scale: 1/τ at the start.
        max_logit_scale: 1/τ is held between 1 and this.
        learn_temperature: whether τ learns.
        pool_padding: whether padding counts in a report's mean, as for the released weights.
        xray_ecg: whether X-rays and ECGs are contrasted too, in a third term of this name. Ours.
        mask_patients: whether samples of one patient (`patient.cls`), on any rank, are no negatives of each other.
            Ours.
        mask_texts: whether samples of one report, on any rank, are no negatives of each other. Ours.

    Raises:
        ValueError: `pool_padding` of a text tower that gives no tokens, as the first batch is encoded.
    """

    modalities = ("xray", "ecg", "text")
    optional = ("xray", "ecg")

    def __init__(
        self,
        xray_encoder: Encoder,
        ecg_encoder: Encoder,
        text_encoder: Encoder,
        xray_processor: Processor,
        ecg_processor: Processor,
        tokenizer: Processor,
        embed_dim: int = 128,
        init_logit_scale: float = 1 / TEMPERATURE,
        max_logit_scale: float = 100.0,
        learn_temperature: bool = True,
        pool_padding: bool = False,
        xray_ecg: bool = False,
        mask_patients: bool = False,
        mask_texts: bool = False,
    ) -> None:
        super().__init__()
        self.processors = {"xray": xray_processor, "ecg": ecg_processor, "text": tokenizer}
        towers: dict[str, Encoder] = {"xray": xray_encoder, "ecg": ecg_encoder, "text": text_encoder}
        self.encoders = nn.ModuleDict(towers)
        self.projections = nn.ModuleDict(
            {modality: NormedProjection(tower.width, embed_dim) for modality, tower in towers.items()}
        )
        scale = torch.tensor(math.log(init_logit_scale))
        self.logit_scale = nn.Parameter(scale, requires_grad=learn_temperature)  # -log τ
        self.max_logit_scale = max_logit_scale
        self.pool_padding, self.xray_ecg = pool_padding, xray_ecg
        self.mask_patients, self.mask_texts = mask_patients, mask_texts
        self.also = (PATIENT,) if mask_patients else ()

    def forward(self, modality: str, inputs: Tensor, mask: Tensor | None = None) -> Encoding:
        encoding = self.encoders[modality](inputs, mask)
        if modality == "text" and self.pool_padding:
            if encoding.tokens is None:
                raise ValueError(f"{type(self.encoders['text']).__name__} gives no tokens: leave pool_padding False.")
            encoding = encoding.replace(pooled=encoding.tokens.mean(1))
        projection: Any = self.projections[modality]
        return projection.project(encoding)

    def embed(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        return {modality: self._given(modality, batch) for modality in self.modalities}

    def losses(self, embeddings: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        patients = torch.as_tensor(batch[PATIENT], device=self.device) if self.mask_patients else None
        terms = anchored_losses(
            embeddings["text"],
            embeddings["xray"],
            embeddings["ecg"],
            self.logit_scale.exp(),
            xray_given=batch.get("xray_given"),
            ecg_given=batch.get("ecg_given"),
            patient_ids=patients,
            text_ids=text_ids(batch["text"]) if self.mask_texts else None,
            xray_ecg=self.xray_ecg,
        )
        return {name: term for name, term in terms._asdict().items() if term is not None}

    def load_official(self, weights: Mapping[str, Tensor]) -> None:
        """Take over the weights of svthapa/MoRE, with the names of any of its scripts.

        The text tower is a `HuggingFaceTextEncoder` of RoBERTa in a `LoRA` of rank 16 on queries and values, and the
        sizes are those of the checkpoint; 12 heads are in the numbers, but not in their shapes. Their projections
        were trained with `pool_padding` and a temperature of 0.02, their ECG tower on leads in MIMIC's order
        (`ECGProcessor(lead_order="mimic")`).

        Raises:
            ValueError: a weight is missing, of another shape, or has no place.
        """
        ours = self.state_dict()
        named = {_our_name(name): value for name, value in weights.items()}
        found = {name: value for name, value in named.items() if name is not None}
        settled = {name for name in ours if name.endswith("num_batches_tracked") or name == "logit_scale"}
        missing, unknown = ours.keys() - found.keys() - settled, found.keys() - ours.keys()
        wrong = [name for name in found.keys() & ours.keys() if found[name].shape != ours[name].shape]
        for problem, names in (("missing", missing), ("without a place", unknown), ("of another shape", wrong)):
            if names:
                raise ValueError(f"These weights do not fit: {len(names)} are {problem}, such as {min(names)!r}.")
        self.load_state_dict(found, strict=False)

    def _given(self, modality: str, batch: dict[str, Any]) -> Float[Tensor, "n D"]:
        """The embeddings of one modality; zeros, from no network, for samples that lack it."""
        given = batch.get(f"{modality}_given")
        if given is None or bool(given.all()):
            return self.encode(modality, batch[modality]).pooled
        rows = given.nonzero()[:, 0]
        projection: Any = self.projections[modality]
        if not len(rows):  # every parameter still takes part, for DDP
            return self._idle(modality) * torch.zeros(len(given), projection.dim, device=self.device)
        # Of one vector a batch norm has no deviation: those of earlier batches serve.
        projection.train(self.training and len(rows) > 1)
        pooled = self.encode(modality, batch[modality][rows]).pooled
        projection.train(self.training)
        return pooled.new_zeros(len(given), pooled.shape[1]).index_copy(0, rows, pooled)

    def _idle(self, modality: str) -> Float[Tensor, ""]:
        """0, with a gradient of 0 for each trainable parameter of a modality."""
        networks = (self.encoders[modality], self.projections[modality])
        weights = [each for network in networks for each in network.parameters() if each.requires_grad]
        return torch.stack([0 * each.sum() for each in weights]).sum() if weights else torch.zeros(())


def _stage(inputs: int, outputs: int) -> nn.Sequential:
    stage = nn.Sequential()
    stage.add_module("linear", nn.Linear(inputs, outputs, bias=False))
    stage.add_module("bn", nn.BatchNorm1d(outputs))
    return stage


def _our_name(official: str) -> str | None:
    """Where an official weight belongs; None for those that have no use."""
    name = official.removeprefix("module.")
    if ".pooler." in name or name.endswith(("num_batches_tracked", "position_ids")) or "temperature" in name:
        return None
    for theirs, ours in _OFFICIAL.items():
        if name.startswith(theirs):
            return ours + _new_peft_name(name.removeprefix(theirs))
    return name


def _new_peft_name(name: str) -> str:
    """Names of a peft before 0.6, where an adapted layer holds its own weight."""
    for layer in ("query", "value"):
        for part in ("weight", "bias"):
            if name.endswith(f"self.{layer}.{part}"):
                return name.removesuffix(part) + f"base_layer.{part}"
    return name
