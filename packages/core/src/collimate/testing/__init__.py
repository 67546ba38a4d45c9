"""The test kit: what Collimate tests its own losses with, for yours.

- `oracles`: dense float64 losses, the equations written out.
- `assert_same_on_ranks`: value and gradients on N real gloo processes, even and uneven splits, against one process.
- `run_on_ranks`: any function on N real gloo processes.
- `assert_cached_equals_full`: a gradient-cached computation against the full batch.
- `saved_memory`, `assert_saved_memory_below`: what autograd keeps between forward and backward.

    def test_my_loss_is_exact_across_devices():
        rows = {"image": torch.randn(12, 32), "text": torch.randn(12, 32)}
        assert_same_on_ranks(my_loss, rows, shared={"logit_scale": torch.tensor(14.3)})
"""

from collimate.testing import oracles
from collimate.testing.gradients import assert_cached_equals_full, assert_close, relative_error
from collimate.testing.memory import SavedMemory, assert_saved_memory_below, saved_memory
from collimate.testing.ranks import assert_same_on_ranks, even_and_uneven, run_on_ranks

__all__ = [
    "SavedMemory",
    "assert_cached_equals_full",
    "assert_close",
    "assert_same_on_ranks",
    "assert_saved_memory_below",
    "even_and_uneven",
    "oracles",
    "relative_error",
    "run_on_ranks",
    "saved_memory",
]
