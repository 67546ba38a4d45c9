"""BEATs' quantizer: the official codes, gradients and moving averages, from given codes and from k-means."""

import pytest
import torch

from collimate_audio.codebook import code_counts
from collimate_audio.quantizer import EMAQuantizer


@pytest.fixture(params=["beats_quantizer_ema", "beats_quantizer_kmeans"])
def golden_set(request, golden):
    return golden(request.param)


def started(golden_set):
    config, inputs = golden_set.config, golden_set.inputs
    quantizer = EMAQuantizer(config["n_embed"], config["embedding_dim"], config["beta"], config["decay"])
    if config["kmeans_init"]:
        unit = torch.nn.functional.normalize(inputs["z_0"].flatten(0, 1), dim=-1)
        quantizer.start(unit, inputs["kmeans_init_indices"])
        golden_set.compare({"codebook_from_kmeans": quantizer.codebook})
    else:
        quantizer.codebook.copy_(inputs["codebook_init"])
        quantizer.started.fill_(True)
    return quantizer


def gradient(value, encodings):
    return torch.autograd.grad(value, encodings, retain_graph=True)[0]


def test_training(golden_set):
    quantizer = started(golden_set)
    for step in range(golden_set.config["steps"]):
        encodings = golden_set.inputs[f"z_{step}"].requires_grad_()
        found = quantizer(encodings)
        actual = {
            "zq": found.vectors,
            "loss": found.loss.reshape(1),
            "indices": found.codes.flatten(),
            "grad_zq": gradient((found.vectors * golden_set.inputs[f"cot_{step}"]).sum(), encodings),
            "grad_loss": gradient(found.loss, encodings),
            "codebook_after": quantizer.codebook,
            "cluster_size_after": quantizer.usage,
        }
        golden_set.compare({f"{name}_{step}": value for name, value in actual.items()})
    evaluate(golden_set, quantizer.eval())


def evaluate(golden_set, quantizer):
    usage = quantizer.usage.clone()
    found = quantizer(golden_set.inputs["z_eval"])
    assert torch.equal(quantizer.usage, usage)
    official_usage = usage.lerp(code_counts(found.codes, len(usage)), 1 - quantizer.decay)  # moves in evaluation too
    golden_set.compare(
        {
            "zq_eval": found.vectors,
            "loss_eval": found.loss.reshape(1),
            "indices_eval": found.codes.flatten(),
            "codebook_after_eval": quantizer.codebook,
            "cluster_size_after_eval": official_usage,
        }
    )
