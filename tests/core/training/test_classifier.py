"""The supervised baseline, on pictures and through the command line: it learns, resumes as a folder, and answers."""

import pytest
import torch

import collimate
from collimate.checkpoints import save
from collimate.encoders import TimmImageEncoder
from collimate.processing import ClassLabels, ImageProcessor
from collimate.training import Classifier

NAMES = ["circle", "square", "triangle"]


def classifier(**options) -> Classifier:
    torch.manual_seed(0)
    encoder = TimmImageEncoder("resnet18", image_size=32)
    return Classifier(encoder, ClassLabels(NAMES, exclusive=True), ImageProcessor(32), **options)


def test_the_loss_is_the_cross_entropy_of_the_head():
    method = classifier(label_smoothing=0.1).eval()
    batch = {"image": torch.rand(5, 3, 32, 32), "labels": torch.eye(3)[[0, 1, 2, 0, 1]]}
    pooled = method.encode("image", batch["image"]).pooled
    expected = torch.nn.CrossEntropyLoss(label_smoothing=0.1)(method.head[1](pooled), batch["labels"].argmax(1))
    assert method.loss_terms(batch)["classification"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_smoothing_is_refused_where_labels_are_several():
    with pytest.raises(ValueError, match="label_smoothing"):
        Classifier(TimmImageEncoder("resnet18"), ClassLabels(NAMES), ImageProcessor(32), label_smoothing=0.1)


def test_a_folder_answers_by_name(tmp_path):
    method = classifier().eval()
    save(method, tmp_path)
    picture = (torch.rand(32, 32, 3) * 255).byte().numpy()
    assert collimate.load(tmp_path).classify([picture]) == method.classify([picture])
    assert set(method.classify([picture])[0]) == set(NAMES)
