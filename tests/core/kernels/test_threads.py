"""Parts on threads: torch's modes and thread counts are the caller's, and errors come out."""

import threading

import pytest
import torch

from collimate.kernels.threads import for_each

CPU = torch.device("cpu")


@pytest.fixture(params=[1, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_every_part_is_done_once_in_the_callers_mode(threads):
    done, lock = [], threading.Lock()

    def work(part):
        with lock:
            done.append((part, torch.get_num_threads(), torch.is_inference_mode_enabled()))

    with torch.inference_mode():
        for_each(work, range(20), CPU)
    assert sorted(done) == [(part, 1, True) for part in range(20)]
    assert torch.get_num_threads() == threads


def test_no_graph_is_built(threads):
    weight, found = torch.ones(2, requires_grad=True), []
    with torch.no_grad():
        for_each(lambda part: found.append((part * weight).requires_grad), range(4), CPU)
    assert found == [False] * 4


def test_threads_that_begin_later_have_all_of_torchs_threads(threads):
    for_each(lambda part: None, range(4), CPU)
    seen = []
    later = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert seen == [threads]


def test_an_error_comes_out(threads):
    with pytest.raises(ZeroDivisionError):
        for_each(lambda part: 1 // part, [1, 0, 2], CPU)
    assert torch.get_num_threads() == threads
