"""MoRE: towers, dropped keys, explanations, missing modalities, patients; that it learns, saves and loads."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from collimate.checkpoints import load, save
from collimate.data import ImageAugmentation
from collimate.encoders import Encoder, HuggingFaceTextEncoder, TimmImageEncoder
from collimate.encoding import Encoding
from collimate.processing import ClipTokenizer, Processor
from collimate.testing import relative_error
from collimate_medical.dropkey import DropKeyAttention, linear_shares
from collimate_medical.ecg import MIMIC_LEADS
from collimate_medical.explanation import attention_rollout, explain, recorded_attention
from collimate_medical.more import PATIENT, MoRE
from collimate_medical.processing import ECGProcessor, XRayProcessor
from collimate_medical.prompts import CHEST_FINDINGS, COMPETITION, finding_texts
from collimate_medical.transformers import ECGTransformer, ImageTransformer
from collimate_medical.zero_shot import finding_scores

SIZES = {"width": 24, "depth": 2, "heads": 3}


class Words(Encoder):
    """Texts of ids, as the mean of their vectors."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.width = width
        self.vectors = nn.Embedding(32, width)

    def forward(self, inputs, mask=None):
        tokens = self.vectors(inputs)
        real = torch.ones_like(inputs) if mask is None else mask
        return Encoding((tokens * real[..., None]).sum(1) / real.sum(1, keepdim=True), tokens, mask)


class Letters(Processor):
    """The first 12 letters of a text; 0 is padding."""

    modality = "text"

    def __call__(self, raw):
        ids = [1 + ord(letter) % 31 for letter in raw[:12]]
        return torch.tensor(ids + [0] * (12 - len(ids)))

    def mask(self, batch):
        return batch != 0


def method(**options):
    torch.manual_seed(0)
    towers = ImageTransformer(32, 16, **SIZES), ECGTransformer(200, stem_width=8, **SIZES), Words()
    return MoRE(*towers, XRayProcessor(32), ECGProcessor(seconds=2), Letters(), embed_dim=8, **options)


def batch(count=6, **others):
    torch.manual_seed(1)
    return {
        "xray": torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8),
        "ecg": torch.randn(count, 12, 200),
        "text": torch.randint(1, 32, (count, 12)),
        **others,
    }


# Towers -----------------------------------------------------------------------------------------------------------


def test_towers():
    image, ecg = ImageTransformer(32, 16, **SIZES).eval(), ECGTransformer(1000, stem_width=8, **SIZES).eval()
    found = image(torch.randn(2, 3, 32, 32))
    assert (found.pooled.shape, found.grid) == ((2, 24), (2, 2))
    assert image(torch.randn(2, 3, 48, 32)).grid == (3, 2)
    assert ecg(torch.randn(2, 12, 1000)).grid == (1, 196)
    assert ecg(torch.randn(2, 12, 500)).grid == (1, 96)
    with pytest.raises(ValueError, match=r"12 leads, 25 samples"):
        ecg(torch.randn(2, 3, 1000))
    with pytest.raises(ValueError, match="cannot be cut"):
        ImageTransformer(30, 16)
    with pytest.raises(ValueError, match="24 cannot be shared among 5"):
        ImageTransformer(32, 16, 24, 2, 5)


def test_a_token_of_an_ecg_sees_a_quarter_of_a_second():
    """Token i reads the samples 5 i to 5 i + 25 and no others."""
    tower = ECGTransformer(200, stem_width=64, **SIZES).eval()  # wide: some unit of each sample is not shut by its ReLU
    signal = torch.randn(1, 12, 200, requires_grad=True)
    token = tower.patch_embed(signal)[0, :, 7].sum()
    seen = torch.autograd.grad(token, signal)[0].abs().sum((0, 1)).nonzero()[:, 0].tolist()
    assert seen == list(range(35, 60))


def test_keys_are_dropped_in_training_alone_and_in_their_share():
    attention = DropKeyAttention(24, 3, 0.5)
    tokens = torch.randn(4, 40, 24)
    assert not torch.equal(attention(tokens), attention(tokens))
    with recorded_attention(attention) as weights:
        attention(tokens)
    assert (weights[0] == 0).float().mean().item() == pytest.approx(0.5, abs=0.02)
    torch.testing.assert_close(weights[0].sum(-1), torch.ones(4, 3, 40))
    attention.eval()
    assert torch.equal(attention(tokens), attention(tokens))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_query_without_keys_attends_to_all(dtype):
    attention = DropKeyAttention(24, 3, 0.5).to(dtype)
    tokens = torch.randn(1, 10, 24, dtype=dtype)
    every = torch.ones(1, 3, 10, 10, dtype=torch.bool)
    with recorded_attention(attention) as weights:
        assert attention(tokens, every).isfinite().all()
    assert (weights[0] > 0).all()


def test_shares_fall_with_depth():
    assert linear_shares(4, 0.3) == pytest.approx([0.3, 0.2, 0.1, 0.0])
    assert linear_shares(3, 0.3, 0.3) == pytest.approx([0.3] * 3)
    assert linear_shares(1, 0.3) == [0.3]
    tower = ImageTransformer(32, 16, **SIZES, dropkey=0.4, dropkey_last=0.1)
    assert [block.attn.dropped for block in tower.blocks] == pytest.approx([0.4, 0.1])
    with pytest.raises(ValueError, match="below 1"):
        linear_shares(3, 1.0)


# Explanations -----------------------------------------------------------------------------------------------------


def test_what_decides_is_what_is_shown():
    """A score of one value vector of one patch is explained by that patch."""
    tower = TimmImageEncoder("vit_tiny_patch16_224", image_size=32, model_args={"depth": 2}).eval()
    images = torch.randn(3, 3, 32, 32)
    found = explain(tower, images, lambda encoding: encoding.pooled[:, 0])
    assert found.shape == (3, 4)
    assert (found >= 0).all()
    with torch.inference_mode():
        assert torch.equal(explain(tower, images, lambda encoding: encoding.pooled[:, 0]), found)
    assert all(parameter.grad is None for parameter in tower.parameters())
    alone = explain(tower, images[:1], lambda encoding: encoding.pooled[:, 0])
    torch.testing.assert_close(alone, found[:1], rtol=1e-3, atol=1e-6)


def test_the_rollout_of_even_attention_is_even():
    even = [torch.full((1, 2, 5, 5), 0.2)] * 3
    torch.testing.assert_close(attention_rollout(even), torch.full((1, 4), (1 - 0.5**3) / 5))
    with pytest.raises(ValueError, match="one of the 3 layers"):
        attention_rollout(even, 3)


def test_attention_is_fused_again_afterwards():
    tower = ImageTransformer(32, 16, **SIZES)
    with pytest.raises(RuntimeError), recorded_attention(tower):
        raise RuntimeError
    assert all(block.attn.fused_attn for block in tower.blocks)
    with pytest.raises(ValueError, match="no attention"), recorded_attention(nn.Linear(2, 2)):
        pass


# The method -------------------------------------------------------------------------------------------------------


def test_it_learns_which_belong_together():
    model = method()
    together = batch(16)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(30):
        loss = model.total_loss(model.loss_terms(together))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.after_optimizer_step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 3


def test_terms():
    assert set(method().loss_terms(batch())) == {"text_xray", "text_ecg"}
    assert set(method(xray_ecg=True).loss_terms(batch())) == {"text_xray", "text_ecg", "xray_ecg"}
    assert method(learn_temperature=False).logit_scale.requires_grad is False
    assert method().logit_scale.exp().item() == pytest.approx(50)


def test_patients_and_texts_are_masked():
    patients = [1, 1, 2, 2, 3, 3]
    plain, masked = method().eval(), method(mask_patients=True).eval()
    assert masked.also == (PATIENT,)
    apart, shared = plain.loss_terms(batch()), masked.loss_terms(batch(**{PATIENT: patients}))
    assert shared["text_xray"] < apart["text_xray"]
    same = batch()
    same["text"][1:4] = same["text"][0]
    assert method(mask_texts=True).eval().loss_terms(same)["text_xray"] < plain.loss_terms(same)["text_xray"]


def test_a_missing_modality_is_never_encoded():
    model = method(xray_ecg=True).train()
    there = torch.tensor([1, 1, 0, 1, 0, 1]).bool()
    gaps = batch(xray_given=there)
    torch.manual_seed(2)  # of dropped keys
    terms = model.loss_terms(gaps)
    assert all(term.isfinite() for term in terms.values())
    full, statistics = batch(), model.projections["xray"].layers[0].bn.running_mean.clone()
    other = method(xray_ecg=True).train()
    torch.manual_seed(2)
    other.encode("xray", full["xray"][there])
    torch.testing.assert_close(other.projections["xray"].layers[0].bn.running_mean, statistics)


def test_a_batch_without_a_modality_reaches_every_parameter():
    model = method()
    nowhere = batch(ecg_given=torch.zeros(6, dtype=torch.bool))
    model.total_loss(model.loss_terms(nowhere)).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert not any(parameter.grad.any() for parameter in model.encoders["ecg"].parameters())


def test_padding_counts_only_where_it_is_asked_for():
    ids = torch.cat([torch.randint(1, 32, (3, 6)), torch.zeros(3, 6, dtype=torch.long)], 1)
    ours, theirs = method().eval(), method(pool_padding=True).eval()
    short, padded = ours.encode("text", ids[:, :6]).pooled, ours.encode("text", ids).pooled
    torch.testing.assert_close(short, padded)
    assert relative_error(theirs.encode("text", ids).pooled, padded) > 0.01


def test_findings_by_their_texts():
    model = method().eval()
    images = model.encode("xray", batch()["xray"])
    texts = finding_texts()
    assert list(texts) == list(COMPETITION)
    assert texts["Edema"] == (("pulmonary edema",), ("no pulmonary edema",))
    with torch.inference_mode():
        scores = finding_scores(model, images, finding_texts(list(CHEST_FINDINGS)), device="cpu")
    assert scores.shape == (6, 13)
    assert ((scores > 0) & (scores < 1)).all()
    with pytest.raises(ValueError, match="'Gout' is none of"):
        finding_texts(["Gout"])
    with pytest.raises(ValueError, match=r"has no \{\}"):
        finding_texts(["Edema"], [("{}", "none")])


def test_towers_are_saved_and_loaded(tmp_path):
    tower = ECGTransformer(200, stem_width=8, **SIZES).eval()
    save(
        tower,
        tmp_path / "tower",
    )
    again = load(tmp_path / "tower")
    assert torch.equal(again(tower.example()).pooled, tower(tower.example()).pooled)


def test_a_method_is_saved_and_loaded(tmp_path):
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    tokenizer = ClipTokenizer()
    bert = HuggingFaceTextEncoder({"model_type": "bert", "vocab_size": tokenizer.vocab_size, **sizes})
    towers = ImageTransformer(32, 16, **SIZES), ECGTransformer(200, stem_width=8, **SIZES), bert
    model = MoRE(*towers, XRayProcessor(32), ECGProcessor(seconds=2, lead_order="mimic"), tokenizer, embed_dim=8)
    save(model.eval(), tmp_path / "model")
    again = load(tmp_path / "model").eval()
    signal = again.processors["ecg"].example()
    for modality, raw in {"ecg": signal, "text": "normal ecg", "xray": model.processors["xray"].example()}.items():
        assert torch.equal(again.encode(modality, [raw]).pooled, model.encode(modality, [raw]).pooled)
    assert ECGTransformer.from_pretrained(tmp_path / "model").processor.leads == MIMIC_LEADS


# In training ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("equalize", [False, True])
def test_training_sees_films_of_any_depth_as_evaluation_does(equalize):
    """Of 16 bits, of real numbers as DICOM files give them, and of 8 bits: a whole crop is the processor's picture."""
    processor = XRayProcessor(32, equalize=equalize)
    film = np.random.RandomState(0).rand(64, 64)
    film[16:48, 16:48] *= 0.2
    coarse = np.rint(film * 255).astype(np.uint8)
    for raw in (np.rint(film * 65535).astype(np.uint16), film, coarse, Image.fromarray(coarse)):
        drawn = ImageAugmentation(scale=(1.0, 1.0), ratio=(1.0, 1.0))(raw, processor)
        assert (drawn.float() - processor(coarse).float()).abs().mean() < 2
        assert drawn.float().std() > 10


def test_one_film_in_a_batch_is_no_trouble():
    model = method().train()
    alone = torch.tensor([0, 1, 0, 0, 0, 0]).bool()
    statistics = model.projections["xray"].layers[0].bn.running_var.clone()
    terms = model.loss_terms(batch(xray_given=alone))
    assert all(term.isfinite() for term in terms.values())
    assert torch.equal(model.projections["xray"].layers[0].bn.running_var, statistics)
    assert model.projections["xray"].training
