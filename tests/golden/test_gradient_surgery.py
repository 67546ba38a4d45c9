"""PCGrad, GradVac, CAGrad, MGDA, IMTL-G and Aligned-MTL against public implementations; cosines and the curriculum."""

import pytest
import torch

from collimate.training import surgery
from collimate.training.harmonization import Curriculum

GOLDEN = "gradient_surgery"


@pytest.fixture
def pairs(golden_set):
    return torch.stack([golden_set.inputs["g_va"], golden_set.inputs["g_vt"]], 1).double()  # (N, 2, P)


@pytest.fixture
def close(golden_set):
    def compare(found, key, kind, size=0.0, tolerance=0.0):
        """Relative to the update or, where gradients cancel, to `size`, that of the gradients."""
        wanted, rule = golden_set.expected[key].double(), golden_set.config["tolerance"][kind]
        size = torch.maximum(wanted.norm(dim=-1), torch.as_tensor(size).double()).clamp_min(1e-6)
        error = (found - wanted).norm(dim=-1) / size
        assert error.max() <= max(rule["rtol"], tolerance), f"{key}: relative error {error.max():.2g}"

    return compare


def gram(gradients):
    return gradients @ gradients.mT


def regularised(gram, epsilon=1e-4):  # torchjd's norm_eps and reg_eps
    return gram / gram.trace() + epsilon * torch.eye(len(gram))


def rows(golden_set, pairs):
    return [(str(row), pairs[row]) for row in golden_set.config["aggregator_rows"]]


def test_cosines_and_what_the_curriculum_keeps(golden_set, pairs):
    found = surgery.cosines(gram(pairs))[:, 0, 1]
    tolerance = golden_set.config["tolerance"]["cos"]["atol"]
    torch.testing.assert_close(found, golden_set.expected["cos"].double(), rtol=0, atol=tolerance)
    for gamma in golden_set.config["curriculum_gammas"]:
        kept = Curriculum.above(found, float(gamma), torch.ones_like(found, dtype=torch.bool), least=0)
        assert torch.equal(kept, golden_set.expected[f"curriculum_keep_gamma_{gamma}"])


def test_realigned_gradients_of_each_triplet(golden_set, pairs, close):
    realigned = surgery.pcgrad(gram(pairs)) @ pairs
    assert torch.isfinite(realigned).all()
    sizes = pairs.norm(dim=-1)
    close(realigned[:, 0], "realigned_va", "pcgrad", sizes[:, 0])
    close(realigned[:, 1], "realigned_vt", "pcgrad", sizes[:, 1])
    close(realigned.sum(1), "pcgrad_sum", "pcgrad", sizes.amax(1))
    close(realigned.mean(1), "pcgrad_mean_official", "pcgrad", sizes.amax(1))
    zero = golden_set.config["rows"]["zero_g_vt"]
    torch.testing.assert_close(realigned[zero], pairs[zero])


def test_surgery_for_each_triplet_is_not_surgery_on_the_means(pairs, close):
    each = (surgery.pcgrad(gram(pairs)) @ pairs).sum(1).mean(0)
    means = pairs.mean(0)
    close(each, "batch_update_per_triplet", "pcgrad")
    close((surgery.pcgrad(gram(means)) @ means).sum(0), "batch_update_of_means", "pcgrad")


def test_three_gradients_in_the_orders_given(golden_set, close):
    gradients = golden_set.inputs["g3"].double()
    for name in golden_set.config["g3_orders"]:
        order = golden_set.inputs[f"g3_order/{name}"].tolist()
        close((surgery.pcgrad(gram(gradients), order) @ gradients).mean(0), f"g3_pcgrad_mean/{name}", "pcgrad")


def test_parameters_that_not_all_losses_reach(golden_set, close):
    gradients, reached = golden_set.inputs["unshared_g"].double(), golden_set.inputs["unshared_mask"].bool()
    realigned = surgery.pcgrad(gram(gradients)) @ gradients
    close(torch.where(reached.all(0), realigned.mean(0), realigned.sum(0)), "unshared_pcgrad_mean", "pcgrad")


def test_cagrad(golden_set, pairs, close):
    settings = golden_set.config["cagrad"]
    for name, pair in rows(golden_set, pairs):
        update = surgery.cagrad(gram(pair), settings["c"]) @ pair
        if not pair.norm(dim=1).all():  # the released result is what its solver's tolerance makes of a zero
            torch.testing.assert_close(update, pair.mean(0))
            continue
        for key, rescale in settings["rescale_modes"].items():
            close(update / (1 + settings["c"] ** 2 if rescale else 1), f"{key}/{name}", "cagrad")
        if int(name) not in settings["torchjd_skip_rows"]:
            close(update, f"torchjd_cagrad/{name}", "torchjd")


def test_gradvac_remembers_its_cosines(golden_set, pairs, close):
    settings = golden_set.config["gradvac"]
    for name, pair in rows(golden_set, pairs):
        rule = surgery.GradVac(settings["beta"])
        # Of opposed gradients, sqrt(1 - c^2) is known to the root of float32's precision only.
        tolerance = torch.finfo(torch.float32).eps ** 0.5 if int(name) == golden_set.config["rows"]["opposed"] else 0.0
        for step in range(settings["steps"]):
            update = (rule(gram(pair)) @ pair).sum(0)
            key = f"torchjd_gradvac_beta{settings['beta']}_step{step}/{name}"
            close(update, key, "torchjd", pair.norm(dim=1).amax(), tolerance)


@pytest.mark.parametrize(
    ("key", "update"),
    [
        ("torchjd_pcgrad", lambda pair: (surgery.pcgrad(gram(pair)) @ pair).sum(0)),
        ("torchjd_upgrad", lambda pair: (surgery.pcgrad(regularised(gram(pair))) @ pair).mean(0)),
        ("torchjd_mgda", lambda pair: surgery.mgda(gram(pair)) @ pair),
        ("torchjd_imtlg", lambda pair: surgery.imtl_g(gram(pair)) @ pair),
        ("torchjd_aligned_mtl", lambda pair: surgery.aligned_mtl(gram(pair)) @ pair),
    ],
)
def test_other_rules(golden_set, pairs, close, key, update):
    for name, pair in rows(golden_set, pairs):
        close(update(pair), f"{key}/{name}", "torchjd", pair.norm(dim=1).amax())
