"""Questions about videos: the head's formula, weights to begin with, other numbers of frames, tables, and the verb."""

import csv
import json

import pytest
import torch
import yaml

import collimate
from collimate.checkpoints import CheckpointError, save
from collimate.cli import main
from collimate.data import open_source
from collimate.evaluation.answers import answer, judge
from collimate.processing import ClassLabels, ImageProcessor
from collimate_video import ALPROAnswers, VideoProcessor
from collimate_video.importing import import_video_qa

from .films import film
from .test_alpro import alpro, bert, tokenizer, tower

ANSWERS = ["left", "right", "two"]
QUESTIONS = {"what does it do": "left", "how many": "two", "whither": "right", "who": "nobody"}


def model(frames: int = 2, **given) -> ALPROAnswers:
    torch.manual_seed(1)
    labels = ClassLabels(ANSWERS, exclusive=True)
    videos = VideoProcessor(frames, ImageProcessor(16))
    return ALPROAnswers(tower(frames=frames), bert(token_head=False), labels, videos, tokenizer(), **given)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A table in the layout of MSRVTT-QA, with its videos."""
    folder = tmp_path_factory.mktemp("qa")
    for number in range(2):
        film(8, path=folder / f"video{number}.mp4")
    rows = [
        {"question": f"{question}?", "answer": found, "video_id": number % 2, "category_id": 1, "id": number}
        for number, (question, found) in enumerate(QUESTIONS.items())
    ]
    (folder / "train_qa.json").write_text(json.dumps(rows))
    (folder / "val_qa.json").write_text(json.dumps(rows[:2]))
    (folder / "test_qa.json").write_text(json.dumps(rows))
    import_video_qa(str(folder), str(folder), str(folder / "qa.jsonl"), answers=3)
    return folder / "qa.jsonl"


def test_logits_are_read_off_the_fused_class_token():
    method = model().eval()
    batch = {"video": torch.randint(0, 256, (3, 2, 3, 16, 16), dtype=torch.uint8)}
    batch["text"] = tokenizer().batch(["what is it", "who", "how many are there"])
    bert, video = method.encoders["text"], method.encode("video", batch["video"])
    tokens = torch.cat([video.pooled[:, None], video.tokens.unflatten(1, (2, 4)).mean(1)], 1)
    fused = bert.fuse_joined(method.encode("text", batch["text"]), type(video)(video.pooled, tokens))
    first, last = method.head[0], method.head[2]
    torch.testing.assert_close(method.embed(batch)["logits"], last(torch.relu(first(fused.pooled))))
    batch["labels"] = torch.eye(3)
    method.loss_terms(batch)["classification"].backward()
    assert all(weight.grad is not None for weight in method.parameters())


@pytest.mark.parametrize("frames", [2, 4])
def test_it_begins_where_pre_training_ended(tmp_path, frames):
    taught = alpro()
    torch.nn.init.normal_(taught.encoders["video"].time_embed)
    save(taught, tmp_path / "alpro")
    method = model(frames, pretrained=str(tmp_path / "alpro"))
    torch.testing.assert_close(method.encoders["text"].layers[1].output.dense.weight, _layer(taught))
    times = taught.encoders["video"].time_embed
    expected = times if frames == 2 else times.repeat_interleave(2, 1)
    torch.testing.assert_close(method.encoders["video"].time_embed, expected)
    assert "pretrained" not in method.config()["init_args"]


def _layer(method):
    return method.encoders["text"].layers[1].output.dense.weight


def test_released_names_are_read_with_their_head(tmp_path):
    method = model()
    names = {"encoders.video.": "visual_encoder.model.", "encoders.text.": "text_encoder.", "head.": "classifier."}
    theirs = {}
    for name, value in method.state_dict().items():
        ours = next(prefix for prefix in names if name.startswith(prefix))
        theirs[name.replace(ours, names[ours], 1)] = value + 1
    torch.save({"model": theirs}, tmp_path / "msrvtt_qa.pt")
    begun = model(pretrained=str(tmp_path / "msrvtt_qa.pt"))
    torch.testing.assert_close(begun.head[2].weight, method.head[2].weight + 1)
    theirs["classifier.2.weight"] = torch.zeros(5, 32)
    torch.save(theirs, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=r"head\.2\.weight"):
        model(pretrained=str(tmp_path / "other.pt"))


def test_tables_have_a_row_a_question(table, tmp_path, capsys):
    train, test = (open_source(f"{table}?split={split}") for split in ("train", "test"))
    assert (len(train), len(test)) == (3, 3)  # what has another answer is left out
    assert (table.parent / "answers.txt").read_text().splitlines() == ["left", "two", "right"]
    assert train.read(0)["captions.json"] == ["what does it do?"]
    (tmp_path / "train_qa.json").write_text('[{"question": "what"}]')
    with pytest.raises(ValueError, match="answer"):
        import_video_qa(str(table.parent), str(tmp_path), str(tmp_path / "x.jsonl"))


def test_answers_are_judged(table):
    method = model().eval()
    answers = answer(method, open_source(f"{table}?split=test"))
    direct = method.embed(
        {
            "video": method.processors["video"].batch([table.parent / "video0.mp4"]),
            "text": tokenizer().batch(["what does it do?"]),
        }
    )
    torch.testing.assert_close(answers.probabilities[:1], direct["logits"].softmax(1), atol=1e-5, rtol=1e-4)
    right = (answers.probabilities.argmax(1) == torch.tensor([0, 2, 1])).float().mean()
    assert judge(answers, method, resamples=0).metrics["acc1"] == pytest.approx(float(right))


def test_a_recipe_is_trained_and_answers(table, tmp_path):
    """The whole way: the published recipe with small towers, and the verb."""
    recipe = yaml.safe_load(main_recipe().read_text())
    parts = model().config()
    recipe["model"]["init_args"] |= {
        name: parts["init_args"][name] for name in ("video_encoder", "text_encoder", "tokenizer", "video_processor")
    }
    recipe["model"]["init_args"]["labels"]["init_args"]["names"] = str(table.parent / "answers.txt")
    recipe["data"] |= {"train": f"{table}?split=train", "val": f"{table}?split=val", "num_workers": 0, "batch_size": 2}
    for name in ("global_batch_size", "epoch_samples", "augmentations"):
        recipe["data"].pop(name)
    recipe["trainer"] = {"max_steps": 2, "accelerator": "cpu", "val_check_interval": 2, "check_val_every_n_epoch": None}
    recipe["output"] = str(tmp_path / "run")
    (tmp_path / "qa.yaml").write_text(yaml.safe_dump(recipe))
    main(["video", "train", "--config", str(tmp_path / "qa.yaml")])
    verb = ["video", "classify", "--checkpoint", str(tmp_path / "run/model"), "--data", f"{table}?split=test"]
    main([*verb, "--output", str(tmp_path / "answers"), "--resamples", "2"])
    rows = list(csv.DictReader((tmp_path / "answers/answers.csv").open()))
    assert [row["labels"] for row in rows] == ["left", "two", "right"]
    assert (tmp_path / "answers/report.html").is_file()
    assert isinstance(collimate.load(tmp_path / "run/model"), ALPROAnswers)


def main_recipe():
    from collimate_video_app import APP

    return APP.recipe("alpro_msrvtt_qa")


def test_a_bert_that_cannot_read_videos_is_refused():
    labels = ClassLabels(ANSWERS, exclusive=True)
    with pytest.raises(ValueError, match="fusion_layer"):
        ALPROAnswers(tower(), bert(fusion_layer=2), labels, VideoProcessor(2, ImageProcessor(16)), tokenizer())
