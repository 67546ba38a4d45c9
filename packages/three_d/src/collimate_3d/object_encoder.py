"""One vector for the points of one object: PointNet without its transforms, as 3DSSG has it.

Qi et al. 2017, PointNet, arXiv 1612.00593, section 4.2; ShunChengWu/3DSSG, ssg/models/network_PointNet.py. Each point
passes the same three layers, and the largest of each number is taken:

    f = max over p of relu(W3 relu(W2 relu(W1 x_p))).

3DSSG has batch norms too, and throws their results away; here are none. Published weights of them are not read.

Shape legend: B objects, P points of an object, C numbers of a point, D width.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from collimate.encoders import Encoder
from collimate.encoders.base import waves
from collimate.encoding import Encoding


class ObjectPointNet(Encoder):
    """Points of single objects to one vector each; the tokens are the points' own.

    Args:
        width: D.
        channels: C: x, y, z, and colours.
        hidden: widths of the first two layers.
    """

    def __init__(self, width: int = 256, channels: int = 6, hidden: tuple[int, int] = (64, 128)) -> None:
        super().__init__()
        self.width, self.channels = width, channels
        self.conv1 = nn.Conv1d(channels, hidden[0], 1)
        self.conv2 = nn.Conv1d(hidden[0], hidden[1], 1)
        self.conv3 = nn.Conv1d(hidden[1], width, 1)

    def forward(self, inputs: Float[Tensor, "B P C"], mask: Tensor | None = None) -> Encoding:
        """Encode objects.

        Args:
            inputs: the points of each, in any order.
            mask: (B, P) bool, True where a point is real; everywhere if None. An object without any is all zeros.
        """
        layers = [(layer.weight[..., 0], layer.bias) for layer in (self.conv1, self.conv2, self.conv3)]
        points = inputs
        for weight, bias in layers:  # a matrix a point: the same as a convolution, and faster
            points = nn.functional.linear(points, weight, bias).relu()
        if mask is None:
            return Encoding(points.amax(1), points)
        return Encoding((points * mask[..., None]).amax(1), points, mask)

    def example(self) -> Tensor:
        return waves(2, 16, self.channels)
