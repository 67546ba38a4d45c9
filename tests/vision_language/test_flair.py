"""FLAIR: its losses against dense oracles, on ranks, in tiles and in chunks; ranking by what each text sees."""

import pytest
import torch
from torch.nn.functional import cosine_similarity, logsigmoid

import collimate
from collimate.checkpoints import CheckpointError, save
from collimate.checkpoints.open_clip import to_open_clip
from collimate.data import Source
from collimate.encoders import OpenClipImageEncoder, OpenClipTextEncoder, TimmImageEncoder
from collimate.evaluation import evaluate_retrieval
from collimate.processing import ClipTokenizer, ImageProcessor
from collimate.testing import assert_cached_equals_full, assert_same_on_ranks
from collimate.training import Optimization
from collimate_vision_language import CLIP, FLAIR, flair
from collimate_vision_language.flair import TextConditionedPooling, multi_positive_sigmoid_loss, text_conditioned_loss

B, K, M, D = 7, 3, 5, 8


def make_flair(**given):
    torch.manual_seed(0)
    parts = {
        "image_encoder": OpenClipImageEncoder(width=64, layers=2, image_size=32, patch_size=8),
        "text_encoder": OpenClipTextEncoder(width=64, heads=2, layers=2),
        "image_processor": ImageProcessor(32),
        "tokenizer": ClipTokenizer(12),
        "embed_dim": 32,
    }
    return FLAIR(**{**parts, **given})


def make_batch():
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    tokenizer = ClipTokenizer(12)
    texts = [["a dog", "it sits"], ["a cat", "it is grey"], ["rain", "clouds"], ["one", "two"]]
    return {"image": images, "text": torch.stack([tokenizer.batch(own) for own in texts])}


def make_pooling():
    torch.manual_seed(0)
    pooling = TextConditionedPooling(D, heads=2)
    for parameter in pooling.parameters():
        torch.nn.init.normal_(parameter, 0.1, 0.4)
    return pooling


def features():
    draw = torch.Generator().manual_seed(0)
    shapes = {"image": (B, D), "text": (B, K, D), "patches": (B, M, D)}
    return {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}


SHARED = {"scale": torch.tensor(6.0), "bias": torch.tensor(-3.0)}


def text_conditioned(image, text, patches, scale, bias, **weights):
    pooling = TextConditionedPooling(D, heads=2)
    return torch.func.functional_call(_Loss(pooling), weights, (patches, text, scale, bias))


class _Loss(torch.nn.Module):
    """The loss as a module, so that a test can give the pooling's weights, and see their gradients."""

    def __init__(self, pooling):
        super().__init__()
        self.pooling = pooling

    def forward(self, patches, text, scale, bias):
        return text_conditioned_loss(self.pooling, patches, text, scale, bias)


def multi_positive(image, text, patches, scale, bias):
    return multi_positive_sigmoid_loss(image, text, scale, bias)


def pooling_weights():
    return {f"pooling.{name}": value.detach() for name, value in make_pooling().named_parameters()}


@pytest.mark.parametrize(("loss", "weights"), [(text_conditioned, pooling_weights()), (multi_positive, {})])
def test_value_and_gradients_are_those_of_one_process(loss, weights):
    assert_same_on_ranks(loss, features(), SHARED | weights, tolerance=1e-5)


def seen(pooling, patches, text):
    """v_i(t), with the attention and its empty token written out."""
    attention = pooling.attention
    query, key, value = (
        (norm(inputs) @ weight.T + bias).unflatten(-1, (2, -1)).transpose(-2, -3)
        for norm, inputs, weight, bias in zip(
            (pooling.text_norm, pooling.key_norm, pooling.value_norm),
            (text, patches, patches),
            attention.in_proj_weight.chunk(3),
            attention.in_proj_bias.chunk(3),
            strict=True,
        )
    )
    logits = query @ key.mT / query.shape[-1] ** 0.5
    weights = logits.exp() / (1 + logits.exp().sum(-1, keepdim=True))
    return attention.out_proj((weights @ value).transpose(-2, -3).flatten(-2)), weights.mean(-3)


def test_text_conditioned_loss_written_out():
    pooling = make_pooling().double()
    given = {name: value.double() for name, value in features().items()}
    text, patches, total = given["text"], given["patches"], 0
    for i in range(B):
        for j in range(B):
            for k in range(K):
                if i == j or k == (i - j) % K:
                    found = seen(pooling, patches[i], text[j, k : k + 1])[0]
                    logit = 6.0 * cosine_similarity(found, text[j, k : k + 1]) - 3.0
                    total = total - logsigmoid(logit if i == j else -logit).sum()
    found = text_conditioned_loss(pooling, patches, text, torch.tensor(6.0), torch.tensor(-3.0))
    torch.testing.assert_close(found, total / (B + K - 1))


def test_multi_positive_loss_written_out():
    given = {name: value.double() for name, value in features().items()}
    logits = 6.0 * cosine_similarity(given["image"][:, None, None], given["text"], dim=-1) - 3.0
    signs = 2 * torch.eye(B)[:, :, None] - 1
    found = multi_positive_sigmoid_loss(given["image"], given["text"], torch.tensor(6.0), torch.tensor(-3.0))
    torch.testing.assert_close(found, -logsigmoid(signs * logits).sum() / (B * K))


def test_the_empty_token_takes_what_patches_do_not():
    pooling, given = make_pooling(), features()
    expected, weights = seen(pooling, given["patches"], given["text"])
    torch.testing.assert_close(pooling(given["text"], given["patches"]), expected)
    torch.testing.assert_close(pooling.weights(given["text"], given["patches"]), weights)
    assert (weights.sum(-1) < 1).all()


def test_tiles_change_nothing(monkeypatch):
    method, given = make_flair(), make_batch()

    def loss(pairs):
        monkeypatch.setattr(flair, "PAIRS", pairs)
        return method.total_loss(method.loss_terms(given))

    assert_cached_equals_full(lambda: loss(10**6), lambda: loss(4), dict(method.named_parameters()), tolerance=1e-5)


def test_the_gradient_cache_changes_nothing():
    method, given = make_flair(), make_batch()

    def loss(chunk):
        method.gradient_cache = chunk
        return method.total_loss(method.loss_terms(given))

    assert_cached_equals_full(lambda: loss(None), lambda: loss(3), dict(method.named_parameters()), tolerance=1e-5)


def test_the_order_of_images_does_not_matter_to_the_multi_positive_loss():
    given, order = features(), torch.randperm(B, generator=torch.Generator().manual_seed(1))
    shuffled = {name: value[order] for name, value in given.items()}
    torch.testing.assert_close(multi_positive(**shuffled, **SHARED), multi_positive(**given, **SHARED))


def test_with_one_text_an_image_the_order_does_not_matter_at_all():
    method, given = make_flair(), make_batch()
    one = {name: value[:, 0] if name == "text" else value for name, value in given.items()}
    same = {name: value[:, :1] if name == "text" else value for name, value in given.items()}
    torch.testing.assert_close(method.loss_terms(one), method.loss_terms(same))
    order = [2, 0, 3, 1]
    torch.testing.assert_close(
        method.loss_terms({name: value[order] for name, value in one.items()}), method.loss_terms(one)
    )


def test_similarity_is_that_of_each_text_with_what_it_sees_whoever_asks(monkeypatch):
    method, given = make_flair().eval(), make_batch()
    image, text = method.encode("image", given["image"]), method.encode("text", given["text"].flatten(0, 1))
    scores = method.similarity(image, text)
    assert scores.shape == (4, 8)
    assert torch.equal(method.similarity(text, image), scores.T)
    monkeypatch.setattr(flair, "PAIRS", 20)  # two images at a time
    torch.testing.assert_close(method.similarity(image, text), scores)
    conditioned, _ = seen_by_eight_heads(method, image, text)
    torch.testing.assert_close(scores, cosine_similarity(conditioned, text.pooled.expand(4, -1, -1), dim=-1))
    assert torch.equal(text.tokens[:, 0], text.pooled)
    cosines = cosine_similarity(text.pooled[:, None], text.pooled, dim=-1)
    torch.testing.assert_close(method.similarity(text, text), cosines)
    maps = method.localization_map(image, text)
    torch.testing.assert_close(maps, method.pooling.weights(text.pooled.expand(4, -1, -1), image.tokens))
    assert maps.shape == (4, 8, 16)


def seen_by_eight_heads(method, image, text):
    pooling, patches = method.pooling, image.tokens
    texts = pooling.text_norm(text.pooled).expand(4, -1, -1)
    return pooling.attention(texts, pooling.key_norm(patches), pooling.value_norm(patches))


def test_training_finds_the_pairs():
    method, given = make_flair(), make_batch()
    optimizer = Optimization(lr=1e-3, warmup=0, schedule="constant").optimizer(method)
    before = {name: term.item() for name, term in method.loss_terms(given).items()}
    for _ in range(30):
        optimizer.zero_grad()
        method.total_loss(method.loss_terms(given)).backward()
        optimizer.step()
        method.after_optimizer_step()
    assert all(term < 0.7 * before[name] for name, term in method.loss_terms(given).items())
    method.eval()
    scores = method.similarity(method.encode("text", given["text"][:, 0]), method.encode("image", given["image"]))
    assert scores.argmax(1).tolist() == [0, 1, 2, 3]
    assert all(parameter.grad is not None for parameter in method.parameters())


def test_the_scale_is_clamped():
    method = make_flair(init_logit_scale=500.0)
    method.after_optimizer_step()
    assert method.logit_scale.exp().item() == pytest.approx(100)


class Pictures(Source):
    name = "pictures"

    def __len__(self):
        return 5

    def read(self, index):
        pixels = torch.randint(0, 256, (32, 32, 3), generator=torch.Generator().manual_seed(index)).byte().numpy()
        return {"__key__": str(index), "png": pixels, "captions.json": [f"picture {index}", f"number {index}"]}


def test_retrieval_ranks_by_what_texts_see():
    method = make_flair().eval()
    result = evaluate_retrieval(method, Pictures(), resamples=2)
    assert result.protocol["score"] == "FLAIR.similarity"
    pictures = Pictures()
    image = method.encode("image", [pictures.read(index)["png"] for index in range(5)])
    text = method.encode("text", [text for index in range(5) for text in pictures.read(index)["captions.json"]])
    order = method.similarity(text, image).argsort(1, descending=True)
    assert result.sample_ranks.tolist() == [row.tolist().index(i // 2) for i, row in enumerate(order)]


def test_an_encoder_without_tokens_is_told():
    method = make_flair(image_encoder=TimmImageEncoder("mobilenetv3_small_050"))
    with pytest.raises(ValueError, match="TimmImageEncoder has no tokens"):
        method.loss_terms(make_batch())
    with pytest.raises(ValueError, match="no grid of tokens"):
        method.eval().encode("image", make_batch()["image"])


def test_a_folder_gives_back_the_method(tmp_path):
    method = make_flair(heads=4).eval()
    save(method, tmp_path / "model")
    again = collimate.load(tmp_path / "model")
    assert again.config() == method.config()
    torch.testing.assert_close(again.loss_terms(make_batch()), method.loss_terms(make_batch()))


def test_released_weights_load():
    method = make_flair().eval()
    config, weights = to_open_clip(method)  # the towers; the pooling has no place there
    config.pop("init_logit_bias")
    config.pop("custom_text")
    released = {key.removeprefix("text."): value for key, value in weights.items()}
    released["image_post.proj"] = released.pop("visual.proj")
    released["text_post.proj"] = released.pop("text_projection")
    theirs = {"attention": "attn", "text_norm": "ln_q", "key_norm": "ln_k", "value_norm": "ln_v"}
    for key, value in method.pooling.state_dict().items():
        part, rest = key.split(".", 1)
        released[f"visual_proj.{theirs[part]}.{rest}"] = value
    processors = {"image_processor": ImageProcessor(32), "tokenizer": ClipTokenizer(12)}
    loaded = FLAIR.from_released(released, config, **processors)
    torch.testing.assert_close(loaded.loss_terms(make_batch()), method.loss_terms(make_batch()))
    with pytest.raises(CheckpointError, match=r"released FLAIR.*visual_proj"):
        FLAIR.from_released({k: v for k, v in released.items() if "visual_proj" not in k}, config, **processors)
    clip = CLIP.from_open_clip(config, weights, **processors)
    images = make_batch()["image"]
    torch.testing.assert_close(clip.encode("image", images).pooled, method.encode("image", images).pooled)
