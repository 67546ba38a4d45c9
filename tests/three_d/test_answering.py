"""Questions on rooms: the head of answers learns, begins with trained weights, and is judged letter for letter."""

import pytest
import torch

import collimate
from collimate.checkpoints import save
from collimate.data.preparation import Preparation, collate
from collimate.data.source import Source
from collimate.processing import ClassLabels
from collimate_3d import SceneAnswers, evaluate_answers
from collimate_3d.evaluation import answers_of

from .scene_toys import rooms, scene_graph_vlp


class Questions(Source):
    """What colour the only object of its class has, one question a room."""

    def __init__(self, scenes):
        self.scenes, self.name = scenes, "questions"
        self.asked = []
        for place in range(len(scenes)):
            things = scenes.room(place).things
            labels = [each.label for each in things]
            self.asked += [(place, each) for each in things if labels.count(each.label) == 1][:1]

    def __len__(self):
        return len(self.asked)

    def read(self, index):
        place, thing = self.asked[index]
        sample = self.scenes.read(place)
        return {**sample, "txt": f"the {thing.label}", "labels.json": [thing.colour]}


@pytest.fixture(scope="module")
def questions():
    return Questions(rooms(length=24))


def batch_of(method, source):
    return collate([Preparation(method.processors)(source.read(place)) for place in range(len(source))])


def test_answers_are_learned_and_judged(questions, tmp_path):
    answers = answers_of(questions)
    method = SceneAnswers(scene_graph_vlp(), ClassLabels(answers, exclusive=False), dropout=0.0)
    batch = batch_of(method, questions)
    optimizer = torch.optim.AdamW(method.parameters(), 5e-3)
    before = evaluate_answers(method, questions, resamples=2)
    for _ in range(60):
        optimizer.zero_grad()
        method.total_loss(method.loss_terms(batch)).backward()
        optimizer.step()
    after = evaluate_answers(method, questions, resamples=2)
    assert after.metrics["EM@1"] > max(0.8, before.metrics["EM@1"])
    assert after.metrics["EM@10"] == 1, "there are six colours"
    assert after.metrics["BLEU-1"] == pytest.approx(after.metrics["EM@1"])
    save(method, tmp_path / "answers")
    again = evaluate_answers(collimate.load(tmp_path / "answers"), questions, resamples=2)
    assert again.metrics == after.metrics


def test_it_begins_with_trained_weights(tmp_path):
    trained = scene_graph_vlp(seed=3)
    save(trained, tmp_path / "model")
    answers = ClassLabels(["red", "blue"], exclusive=False)
    method = SceneAnswers(scene_graph_vlp(seed=4), answers, pretrained=str(tmp_path / "model"))
    assert torch.equal(method.model.position_clues.weight, trained.position_clues.weight)
    assert "pretrained" not in method.config()["init_args"]


def test_answers_outside_the_list_are_wrong_and_counted(questions):
    method = SceneAnswers(scene_graph_vlp(), ClassLabels(["nothing"], exclusive=False))
    found = evaluate_answers(method, questions, resamples=2)
    assert found.metrics["EM@10"] == 0
    assert found.protocol["questions whose answer is in no list"] == len(questions)
    with pytest.raises(ValueError, match="exclusive"):
        SceneAnswers(scene_graph_vlp(), ClassLabels(["nothing"], exclusive=True))
