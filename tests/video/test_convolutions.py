"""The small tower of 3-D convolutions: its grid, what it sees of motion, and what it refuses."""

import pytest
import torch

from collimate_video import Convolutions3d


def tower():
    return Convolutions3d((4, 6), (2, 1), (3, 3)).eval()


def test_tokens_lie_on_the_grid_that_strides_leave():
    found = tower()(torch.randn(2, 5, 3, 16, 12))
    assert found.grid == (3, 8, 6)
    assert found.tokens.shape == (2, 3 * 8 * 6, 6)
    torch.testing.assert_close(found.pooled, found.tokens.mean(1))


def test_it_tells_forwards_from_backwards():
    method, clips = tower(), torch.randn(1, 6, 3, 8, 8)
    forwards, backwards = (method(each).pooled for each in (clips, clips.flip(1)))
    assert not torch.allclose(forwards, backwards)


def test_what_stays_still_has_no_change():
    method = tower()
    seen = []
    method.layers[0].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    method(torch.randn(1, 1, 3, 8, 8).expand(-1, 4, -1, -1, -1))
    assert seen[0].shape == (1, 6, 4, 8, 8)
    assert seen[0][:, :3].abs().sum() > 0
    assert seen[0][:, 3:].abs().sum() == 0


def test_every_parameter_learns():
    method = Convolutions3d()
    method(torch.randn(2, 4, 3, 16, 16)).pooled.square().sum().backward()
    assert not [name for name, parameter in method.named_parameters() if parameter.grad is None]


def test_what_it_refuses():
    with pytest.raises(ValueError, match="Clips are"):
        tower()(torch.randn(2, 3, 8, 8))
    with pytest.raises(ValueError, match="one a layer"):
        Convolutions3d((4, 6), (2,), (3, 3))
    with pytest.raises(ValueError, match="odd"):
        Convolutions3d((4,), (2,), (2,))
