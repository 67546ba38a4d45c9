"""CLIP's tokenizer against the ids of openai/CLIP and open_clip."""

import json

import torch

from collimate.processing import ClipTokenizer

GOLDEN = "clip_tokenizer"


def test_ids(golden_set, case):
    setting = golden_set.cases[case]
    texts = json.loads((golden_set.folder / "inputs.json").read_text())[setting["texts"]]
    tokenizer = ClipTokenizer(setting["context_length"], tuple(setting["special_tokens"]))
    golden_set.compare({case: tokenizer.batch(texts)})


def test_special_ids(golden_set):
    tokenizer = ClipTokenizer()
    wanted = tuple(golden_set.config[key] for key in ("start_id", "end_id", "pad_id", "vocab_size"))
    assert (tokenizer.start_id, tokenizer.end_id, tokenizer.pad_id, tokenizer.vocab_size) == wanted


def test_mask_covers_a_text_and_its_end(golden_set):
    for name in golden_set.cases:
        ids = golden_set.expected[name]
        mask = ClipTokenizer(ids.shape[1]).mask(ids)
        last = (ids == golden_set.config["end_id"]).int().argmax(dim=1)
        assert torch.equal(mask.sum(1), last + 1)
