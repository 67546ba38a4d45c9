"""Re-ranking: the numbers of a ranking by hand, whatever the files, blocks and ranks; and what is refused."""

import json

import pytest
import torch

from collimate.evaluation import EmbeddingIndex, commands, extract, write_embeddings
from collimate.evaluation import index as searching
from collimate.evaluation.reranking import pair_scores, reranked
from collimate.evaluation.retrieval import evaluate_retrieval
from collimate.testing import run_on_ranks

from .toys import ColourMethod, ColourPictures, LateMethod, RerankMethod

OPTIONS = {"device": "cpu", "resamples": 20}


def method():
    return RerankMethod(-0.5).eval()


def by_hand(queries_are_texts, k, source):
    """Ranks from whole matrices: the k best by the cosine, sorted by the matching score, then the others."""
    model = method()
    features = extract(model, source, ["image"], ["captions"], tokens=True, device="cpu")
    captions = [caption for own in features.extras["captions"] for caption in own]
    owner = torch.arange(len(features)).repeat_interleave(
        torch.tensor([len(own) for own in features.extras["captions"]])
    )
    texts, images = model.encode("text", captions), features.encodings["image"]
    with torch.no_grad():
        fast = model.similarity(images, texts)
        slow = torch.stack(
            [
                model.rerank(searching.take(images, torch.full((len(captions),), row)), texts)
                for row in range(len(features))
            ]
        )
    right = torch.arange(len(features))[:, None] == owner
    if queries_are_texts:
        fast, slow, right = fast.T, slow.T, right.T
    found = []
    for row in range(len(fast)):
        order = fast[row].argsort(descending=True, stable=True).tolist()
        order = sorted(order[:k], key=lambda key: -float(slow[row, key])) + order[k:]
        found.append(next(place for place, key in enumerate(order) if right[row, key]))
    return found


@pytest.mark.parametrize("k", [1, 3, 8, 500])
def test_it_is_the_ranking_by_hand(k):
    source = ColourPictures(17)
    found = evaluate_retrieval(method(), source, rerank=k, **OPTIONS)
    assert found.sample_ranks.tolist() == by_hand(True, k, source)
    assert found.text_ranks.tolist() == by_hand(False, k, source)
    plain = evaluate_retrieval(method(), source, **OPTIONS)
    (before,) = found.before
    assert torch.equal(before.sample_ranks, plain.sample_ranks)
    assert torch.equal(before.text_ranks, plain.text_ranks)
    assert {name: found.metrics[name] for name in plain.metrics} == plain.metrics
    assert {f"reranked_{name}" for name in plain.metrics} == found.metrics.keys() - plain.metrics.keys()
    beyond = before.sample_ranks >= k
    assert torch.equal(found.sample_ranks[beyond], before.sample_ranks[beyond])


def test_a_better_score_raises_the_recall():
    found = evaluate_retrieval(RerankMethod(-0.8), ColourPictures(), rerank=15, **OPTIONS).metrics
    assert found["reranked_image_retrieval_recall@5"] > found["image_retrieval_recall@5"] + 0.1
    assert found["reranked_rsum"] > found["rsum"]


def test_equal_scores_keep_the_first_order():
    class Indifferent(RerankMethod):
        def rerank(self, image, text):
            return torch.zeros(len(image.pooled))

    found = evaluate_retrieval(Indifferent(-0.5), ColourPictures(), rerank=6, **OPTIONS)
    assert torch.equal(found.sample_ranks, found.before[0].sample_ranks)
    assert torch.equal(found.text_ranks, found.before[0].text_ranks)


def test_batches_blocks_files_and_ranks_change_nothing(monkeypatch, tmp_path):
    def metrics(batch_size, pairs=2**17, scores=2**22, index=None):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("collimate.evaluation.reranking.PAIR_TOKENS", pairs)
            patch.setattr("collimate.evaluation.retrieval.SCORES", scores)
            return evaluate_retrieval(
                method(), ColourPictures(), batch_size=batch_size, rerank=4, index=index, **OPTIONS
            ).metrics

    alone = metrics(23)
    assert metrics(5, 20, 100, tmp_path / "index") == alone
    assert metrics(5, 1, 1, tmp_path / "index") == alone
    assert run_on_ranks(metrics, [(3, 20, 100), (3, 20, 100)]) == [alone] * 2


def test_features_in_memory_do_as_well_and_need_their_tokens():
    options = {"modalities": ["image"], "also": ["captions"], "device": "cpu"}
    features = extract(method(), ColourPictures(), tokens=True, **options)
    found = evaluate_retrieval(method(), features, rerank=4, **OPTIONS)
    assert found.metrics == evaluate_retrieval(method(), ColourPictures(), rerank=4, **OPTIONS).metrics
    with pytest.raises(ValueError, match="the tokens of the samples: extract features with `tokens=True`"):
        evaluate_retrieval(method(), extract(method(), ColourPictures(), **options), rerank=4, **OPTIONS)


def test_each_pair_is_read_once_and_some_at_a_time(monkeypatch):
    seen: list[tuple[float, float]] = []
    sizes: list[int] = []

    class Counting(RerankMethod):
        def rerank(self, image, text):
            sizes.append(len(image.pooled))
            seen.extend(zip(image.pooled[:, 0].tolist(), text.pooled[:, 0].tolist(), strict=True))
            return super().rerank(image, text)

    images, texts = (torch.rand(count, 3, generator=torch.Generator().manual_seed(count)) for count in (5, 7))
    model = Counting()
    samples, captions = model("image", images), model("text", texts)
    monkeypatch.setattr("collimate.evaluation.reranking.PAIR_TOKENS", 12)
    to_texts, to_samples = torch.tensor([[0, 1, 2]] * 5), torch.tensor([[4, 0]] * 7)
    scores = pair_scores(model, samples, captions, to_texts, to_samples)
    assert len(seen) == len(set(seen)) == 5 * 3 + 7 * 2 - 3 * 2
    assert max(sizes) == 3
    whole = torch.stack(
        [RerankMethod().rerank(searching.take(samples, torch.full((7,), row)), captions) for row in range(5)]
    )
    torch.testing.assert_close(scores[0], whole[:, :3])
    torch.testing.assert_close(scores[1], whole[[4, 0]].T)


def test_ranks_of_given_scores():
    first = torch.tensor([0, 2, 9])
    candidates = torch.tensor([[3, 1, 0], [3, 0, 2], [0, 1, 2]])
    scores = torch.tensor([[0.1, 0.9, 0.1], [0.0, 0.5, 0.7], [3.0, 2.0, 1.0]])
    found = reranked(first, candidates, scores, torch.tensor([3, 2, 8]), torch.arange(9))
    assert found.tolist() == [1, 0, 9]


def test_samples_are_taken_from_files_in_any_order(tmp_path):
    late = LateMethod()
    write_embeddings(
        late, ColourPictures(13), tmp_path, ["image", "text"], tokens=True, device="cpu", samples_per_file=5
    )
    places = torch.tensor([12, 0, 7, 7, 4, 5, 0])
    for modality in ("image", "text"):
        index = EmbeddingIndex(tmp_path, modality)
        taken, whole = index.take(places), index.rows(slice(0, 13))
        assert torch.equal(taken.pooled, whole.pooled[places])
        assert torch.equal(taken.tokens, whole.tokens[places][:, : taken.tokens.shape[1]])
        assert torch.equal(taken.token_mask, whole.token_mask[places][:, : taken.tokens.shape[1]])
        assert torch.equal(index.vectors(), whole.pooled)
        assert len(index.take(places[:0]).pooled) == 0
    assert index.take(torch.tensor([2])).mask is None


def test_what_cannot_be_ranked_again():
    with pytest.raises(ValueError, match="ColourMethod has no `rerank`"):
        evaluate_retrieval(ColourMethod(), ColourPictures(), rerank=4, **OPTIONS)
    with pytest.raises(ValueError, match="best 1 or more of each query, not 0"):
        evaluate_retrieval(method(), ColourPictures(), rerank=0, **OPTIONS)

    class Broken(RerankMethod):
        def rerank(self, image, text):
            return torch.full((len(image.pooled),), torch.nan)

    with pytest.raises(ValueError, match=r"Broken\.rerank gives scores that are NaN"):
        evaluate_retrieval(Broken(), ColourPictures(), rerank=2, **OPTIONS)


def test_the_verb_reports_both(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("collimate.load", lambda folder: method(), raising=False)
    commands.retrieval("a model", ColourPictures(), output=str(tmp_path), device="cpu", resamples=5, rerank=3)
    report = json.loads((tmp_path / "report.json").read_text())["Retrieval"]
    assert {"text_retrieval_recall@1", "reranked_text_retrieval_recall@1"} <= report["metrics"].keys()
    assert report["protocol"]["re-ranking"] == "the 3 best, by RerankMethod.rerank"
    assert "reranked_rsum" in capsys.readouterr().out
    assert "fast score" in (tmp_path / "report.html").read_text()
