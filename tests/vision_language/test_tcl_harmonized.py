"""TCL's contrastive losses and those of its fusion, harmonized."""

import pytest
import torch

from collimate.testing import assert_close
from collimate.training.harmonization import Curriculum, Harmonization

from .test_tcl import batch, drawn, tcl, words  # noqa: F401 - fixtures

TASKS = {"contrast": ["cma", "imc", "lmi"], "fusion": ["itm", "mlm"]}  # meet in the towers' parameters
CONTRASTS = {"across": ["cma"], "within": ["imc", "lmi"]}  # meet in the features of each sample


def gradients(drawn, harmonization, chunk=None):  # noqa: F811
    method = tcl()
    method.harmonization, method.gradient_cache = harmonization, chunk
    method.training_step(drawn, 0)["loss"].backward()
    found = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in method.named_parameters()}
    return found, method


@pytest.mark.parametrize("granularity", ["feature", "microbatch", "batch", "sample"])
def test_the_rule_sum_is_tcls_own_step(drawn, granularity):  # noqa: F811
    groups = CONTRASTS if granularity == "feature" else TASKS
    found, method = gradients(drawn, Harmonization(groups, granularity, "sum"))
    wanted, plain = gradients(drawn, None)
    assert_close(found, wanted, 1e-4, granularity)
    assert method.queue.added == plain.queue.added == 6
    assert {"conflict/cosine", "contrast/i2t"} <= method.statistics.keys()


@pytest.mark.parametrize("granularity", ["feature", "microbatch"])
def test_the_gradient_cache_changes_nothing(drawn, granularity):  # noqa: F811
    harmonization = Harmonization(CONTRASTS, granularity, curriculum=Curriculum())
    wanted, _ = gradients(drawn, harmonization)
    found, _ = gradients(drawn, harmonization, chunk=4)
    assert_close(found, wanted, 1e-4, granularity)


def test_matching_and_contrast_meet_in_no_feature(drawn):  # noqa: F811
    with pytest.raises(ValueError, match="choose groups that meet in one, or the granularity microbatch"):
        gradients(drawn, Harmonization(TASKS, "feature"))
