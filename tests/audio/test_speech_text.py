"""Speech and text: terms by hand, padding, ranks, chunks, transcripts, retrieval by W, and that it learns."""

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

import collimate
from collimate.checkpoints import save
from collimate.data import EvalLoader, Source
from collimate.encoders import OpenClipTextEncoder
from collimate.evaluation import evaluate_retrieval
from collimate.evaluation.features import rows_of
from collimate.losses.transport import ctc_losses, sinkhorn_divergences
from collimate.processing import ClipTokenizer
from collimate.testing import assert_cached_equals_full, run_on_ranks
from collimate.training import Optimization
from collimate_audio import CharacterTokenizer, FilterBank, SiameseSpeechText, SpeechTransformer, TranscriptTransformer

RATE, LETTERS = 16_000, "abcde "
WORDS = ("abba", "bead", "cab", "dad", "ace", "decade")


def spoken(text, seed=0):
    """A tone of its own for each letter, 60 to 90 ms long, with a little noise."""
    draw = np.random.default_rng(seed)
    parts = []
    for letter in text:
        time = np.arange(int(RATE * draw.uniform(0.06, 0.09))) / RATE
        pitch = 250 * 2 ** (LETTERS.index(letter) * 0.7)
        parts.append(0.5 * np.sin(2 * np.pi * pitch * time) * (letter != " ") * np.hanning(len(time)))
    sound = np.concatenate(parts)
    return (sound + 0.003 * draw.normal(size=len(sound))).astype(np.float32)


class Spoken(Source):
    name = "spoken letters"

    def __init__(self, texts=WORDS):
        self.texts = texts

    def __len__(self):
        return len(self.texts)

    def read(self, index):
        text = self.texts[index]
        return {"__key__": str(index), "__source__": self.name, "wav": (spoken(text, index), RATE), "txt": text}


def siamese(**given):
    torch.manual_seed(0)
    parts = {
        "audio_encoder": SpeechTransformer(32, 1, 2, 64, mel_bands=40, channels=32, dropout=0.0),
        "text_encoder": TranscriptTransformer(8, 32, 1, 2, 64, dropout=0.0),
        "audio_processor": FilterBank(0.7, mel_bands=40),
        "tokenizer": CharacterTokenizer(16, LETTERS),
    }
    return SiameseSpeechText(**{**parts, **given}).eval()


@pytest.fixture
def batch():
    method, source = siamese(), Spoken()
    sounds = [source.read(place)["wav"] for place in range(len(source))]
    return {"audio": method.processors["audio"].batch(sounds), "text": method.processors["text"].batch(WORDS)}


def test_terms_are_those_of_the_clips_alone(batch):
    method = siamese()
    terms = method.loss_terms(batch)
    ctc, transport = [], []
    for place, word in enumerate(WORDS):
        speech, text = method.encode("audio", batch["audio"][place : place + 1]), method.encode("text", [word])
        speech, text = speech.tokens[speech.token_mask], text.tokens[text.token_mask]
        labels = torch.tensor([[LETTERS.index(letter) for letter in word]])
        ctc.append(ctc_losses(method.head(speech)[None], labels, blank=method.blank))
        transport.append(sinkhorn_divergences(speech[None], text[None], position_weight=1.0))
    torch.testing.assert_close(terms["ctc"], torch.cat(ctc).mean(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(terms["transport"], torch.cat(transport).mean(), rtol=1e-4, atol=1e-5)
    per_label = siamese(per="label").loss_terms(batch)
    torch.testing.assert_close(per_label["ctc"], terms["ctc"] * len(WORDS) / sum(map(len, WORDS)))
    assert method.statistics["unalignable"] == 0


def test_labels_leave_out_start_end_and_padding():
    tokenizer = ClipTokenizer(8)
    method = siamese(
        tokenizer=tokenizer, text_encoder=OpenClipTextEncoder(width=32, heads=2, layers=1, context_length=8)
    )
    labels, real = method.labels(tokenizer.batch(["two cats!", ""]))
    assert real.sum(1).tolist() == [3, 0]
    assert [tokenizer.decode(row[own]) for row, own in zip(labels, real, strict=True)] == ["two cats !", ""]
    assert method.head.out_features == tokenizer.vocab_size + 1


def test_a_clips_states_do_not_depend_on_its_company(batch):
    method = siamese()
    together = method.encode("audio", batch["audio"])
    alone = method.encode("audio", [spoken("cab", 2)])
    longer = siamese(audio_processor=FilterBank(1.5, mel_bands=40)).encode("audio", [spoken("cab", 2)])
    real = together.tokens[2][together.token_mask[2]]
    torch.testing.assert_close(real, alone.tokens[0][alone.token_mask[0]], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(real, longer.tokens[0][longer.token_mask[0]], rtol=1e-4, atol=1e-4)
    short, long = (siamese(tokenizer=CharacterTokenizer(size, LETTERS)).encode("text", ["cab"]) for size in (5, 16))
    torch.testing.assert_close(long.tokens[:, :4], short.tokens[:, :4], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(long.pooled, short.pooled, rtol=1e-5, atol=1e-5)
    frames = method.processors["audio"].mask(batch["audio"])[2].sum()
    assert together.token_mask[2].sum() == -(-frames // 4)


def own_gradients(batch, per):
    method = siamese(per=per)
    method.total_loss(method.loss_terms(batch)).backward()
    return {name: parameter.grad for name, parameter in method.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("per", ["clip", "label"])
def test_ranks_give_the_gradients_of_one_process(batch, per):
    whole = own_gradients(batch, per)
    parts = [({name: rows[some] for name, rows in batch.items()}, per) for some in (slice(0, 4), slice(4, 6))]
    found = run_on_ranks(own_gradients, parts)
    assert whole.keys() == found[0].keys()
    for name, wanted in whole.items():
        mean = (found[0][name] + found[1][name]) / 2
        assert (mean - wanted).abs().max() <= 2e-4 * wanted.abs().max() + 1e-6, name


def test_the_gradient_cache_changes_nothing(batch):
    method = siamese()

    def loss(chunk):
        method.gradient_cache = chunk
        return method.total_loss(method.loss_terms(batch))

    assert_cached_equals_full(lambda: loss(None), lambda: loss(2), dict(method.named_parameters()), tolerance=1e-4)


def test_repetitions_and_blanks_are_no_letters():
    method = siamese()
    states = torch.zeros(1, 9, 32)
    path = [LETTERS.index("a"), LETTERS.index("a"), method.blank, LETTERS.index("a"), LETTERS.index("b")]
    path += [LETTERS.index(" "), LETTERS.index("c"), method.blank, LETTERS.index("d")]
    states[0, torch.arange(9), torch.arange(9)] = 1.0
    with torch.no_grad():
        method.head.weight.zero_(), method.head.bias.zero_()
        method.head.weight[path, torch.arange(9)] = 1.0
    real = torch.ones(1, 9, dtype=torch.bool)
    assert method._written(states, real) == ["aab cd"]
    real[0, 8:] = False
    assert method._written(states, real) == ["aab c"]


def fitted(steps):
    """A method after some steps on six clips, the batch, its terms before, and what the trainer logged in the end."""
    method = siamese(per="label")
    method.optimization = Optimization(lr=4e-3, warmup=10, loss_weights={"transport": 0.1})
    loader = EvalLoader(Spoken(), method.processors, batch_size=6)
    batch = {name: rows for name, rows in next(iter(loader)).items() if name in ("audio", "text", "valid")}
    before = method.loss_terms(batch)
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        check_val_every_n_epoch=None,
        val_check_interval=steps,
    )
    trainer.fit(method.train(), DataLoader([batch] * steps, batch_size=None), DataLoader([batch], batch_size=None))
    return method.eval(), batch, before, trainer.callback_metrics


def test_training_lowers_both_terms_and_reports_word_errors():
    method, batch, before, logged = fitted(5)
    after = method.loss_terms(batch)
    assert all(after[name] < before[name] for name in ("ctc", "transport"))
    assert logged["val/word_error_rate"] > 0.5  # five steps write nothing yet
    assert {"val/ctc", "val/transport"} <= logged.keys()


@pytest.mark.slow
def test_it_learns_to_write_and_to_find():
    method, batch, before, logged = fitted(120)
    after = method.loss_terms(batch)
    assert after["ctc"] < 0.2 * before["ctc"]
    assert after["transport"] < 0.6 * before["transport"]
    assert logged["val/word_error_rate"] < 0.5
    assert sum(a == b for a, b in zip(method.transcribe(batch["audio"]), WORDS, strict=True)) >= 4
    found = evaluate_retrieval(method, Spoken(), device="cpu", resamples=5, rerank=4)
    assert found.metrics["reranked_text_retrieval_recall@1"] > 0.8
    assert found.metrics["audio_retrieval_recall@1"] > 0.3


def test_retrieval_ranks_by_cosine_and_again_by_transport():
    method, source = siamese(), Spoken()
    found = evaluate_retrieval(method, source, device="cpu", resamples=5, rerank=len(source))
    sounds, texts = method.encode("audio", [source.read(n)["wav"] for n in range(6)]), method.encode("text", WORDS)
    divergence = torch.stack([-method.rerank(rows_of(sounds, torch.full((6,), n)), texts) for n in range(6)])
    order = divergence.argsort(dim=1, stable=True)
    first = sum(int(order[n, 0]) == n for n in range(6)) / 6
    assert found.metrics["reranked_text_retrieval_recall@1"] == pytest.approx(first)
    cosine = method.similarity(sounds, texts).argmax(1)
    assert found.metrics["text_retrieval_recall@1"] == pytest.approx(float((cosine == torch.arange(6)).double().mean()))


def test_padded_rows_are_not_counted_as_errors(batch):
    method = siamese()
    method.log = method.log_dict = lambda *args, **kwargs: None
    valid = torch.tensor([True, True, False, False, False, False])
    method.validation_step(batch | {"valid": valid}, 0)
    assert int(method.word_error_rate.total) == 2


def test_a_folder_gives_the_same_back(batch, tmp_path):
    method = siamese(position_weight=0.5)
    save(method, tmp_path)
    again = collimate.load(tmp_path)
    assert again.transport == method.transport
    for name, term in method.loss_terms(batch).items():
        torch.testing.assert_close(again.loss_terms(batch)[name], term)


def test_widths_that_differ_get_a_matrix():
    method = siamese(audio_encoder=SpeechTransformer(24, 1, 2, 64, mel_bands=40, channels=32))
    assert method.encode("audio", [spoken("ab")]).tokens.shape[-1] == 32


def test_characters():
    tokenizer = CharacterTokenizer(8, LETTERS)
    ids = tokenizer("A,  bad\ncab!")
    assert tokenizer.pieces(ids) == ["a", " ", "b", "a", "d", " ", "c", ""]  # cut: the last is the end
    assert ids[-1] == tokenizer.end_id
    assert tokenizer.mask(tokenizer.batch(["ab", ""])).sum(1).tolist() == [3, 1]
    assert tokenizer.decode(tokenizer("xa yb")[:3]) == "a b"
    with pytest.raises(ValueError, match="stand twice"):
        CharacterTokenizer(8, "aa")
