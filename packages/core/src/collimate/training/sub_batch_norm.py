"""Batch norm whose statistics are taken over the same number of samples, whatever the batch.

facebookresearch/SlowFast, slowfast/models/batchnorm_helper.py, and its synchronised batch norm over some ranks.

Shape legend: N samples, C channels, S splits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import batch_norm

from collimate import distributed
from collimate.distributed import LOCAL, Group

PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class SubBatchNorm(nn.Module):
    """Batch norm of any number of dimensions, in S splits of the batch, or over the ranks of a group.

    Split s holds samples s, s + S, s + 2S, ...; each has running statistics of its own, and all share weight and bias.
    In evaluation the statistics are `aggregate`d:

        mean = mean_s mean_s          var = mean_s var_s + var_s mean_s

    The state dict is that of torch's batch norm, with aggregated statistics, so that either loads the other's; those of
    the splits are `split_state`, which the callback `SplitNorms` keeps in checkpoints.

    Args:
        channels: C.
        splits: S.
        eps, momentum, affine: as torch's.

    Attributes:
        group: the ranks over which statistics are taken together, where S is 1.
        plain: the torch class in whose place it stands.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    split_mean: Tensor
    split_var: Tensor

    def __init__(
        self, channels: int, splits: int = 1, eps: float = 1e-5, momentum: float = 0.1, affine: bool = True
    ) -> None:
        super().__init__()
        self.channels, self.eps, self.momentum = channels, eps, momentum
        self.weight = nn.Parameter(torch.ones(channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if affine else None
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0))
        self.register_buffer("split_mean", torch.zeros(splits, channels), persistent=False)
        self.register_buffer("split_var", torch.ones(splits, channels), persistent=False)
        self.group: Group = LOCAL
        self.plain: type[Any] = nn.BatchNorm3d
        self.register_state_dict_pre_hook(_aggregate)
        self.register_load_state_dict_post_hook(_spread)

    @property
    def splits(self) -> int:
        return len(self.split_mean)

    def forward(self, inputs: Float[Tensor, "N C *rest"]) -> Float[Tensor, "N C *rest"]:
        """Normalise a batch.

        Raises:
            ValueError: in training, where the splits do not divide the batch.
        """
        if not self.training:
            statistics = self.running_mean, self.running_var
            return batch_norm(inputs, *statistics, self.weight, self.bias, False, 0.0, self.eps)
        self.num_batches_tracked += 1
        if distributed.world_size(self.group) > 1:
            return self._scaled(self._over_ranks(inputs))
        if len(inputs) % self.splits:
            raise ValueError(
                f"A batch of {len(inputs)} samples cannot be normalised in {self.splits} splits of equal size: choose "
                "a batch that is a multiple of the schedule's norm_size."
            )
        parts = inputs.reshape(len(inputs) // self.splits, self.splits * self.channels, *inputs.shape[2:])
        running = self.split_mean.view(-1), self.split_var.view(-1)
        return self._scaled(batch_norm(parts, *running, None, None, True, self.momentum, self.eps).view_as(inputs))

    def train(self, mode: bool = True) -> SubBatchNorm:
        if not mode:
            self.aggregate()
        return super().train(mode)

    @torch.no_grad()
    def aggregate(self) -> None:
        """Set the statistics of evaluation from those of the splits."""
        self.running_mean.copy_(self.split_mean.mean(0))
        self.running_var.copy_(self.split_var.mean(0) + self.split_mean.var(0, correction=0))

    @torch.no_grad()
    def split(self, splits: int) -> None:
        """Go on with another number of splits, each from the aggregated statistics."""
        if splits != self.splits:
            self.aggregate()
            # The tensors stay the same objects: DDP holds a list of them.
            self.split_mean.data = self.running_mean.repeat(splits, 1)
            self.split_var.data = self.running_var.repeat(splits, 1)

    def split_state(self) -> dict[str, Tensor]:
        """The statistics of the splits, (S, C) each."""
        return {"mean": self.split_mean.clone(), "var": self.split_var.clone()}

    def load_split_state(self, state: dict[str, Tensor]) -> None:
        """Take up the splits of `split_state`, and their number."""
        self.split_mean.data = state["mean"].to(self.split_mean).clone()
        self.split_var.data = state["var"].to(self.split_var).clone()
        self.aggregate()

    def _over_ranks(self, inputs: Tensor) -> Tensor:
        """Normalised by the statistics of the whole group, through which gradients flow."""
        rest = [0, *range(2, inputs.ndim)]
        own = inputs.float()
        count = own.new_full((1,), own.numel() / self.channels)
        rows = torch.cat([count, own.mean(rest), own.var(rest, correction=0)])[None]
        every = distributed.gather(rows, self.group)
        share = every[:, :1] / every[:, :1].sum()
        means, variances = every[:, 1:].split(self.channels, 1)
        mean = (share * means).sum(0)
        var = (share * (variances + (means - mean) ** 2)).sum(0)
        with torch.no_grad():
            total = every[:, 0].sum()
            self.split_mean.lerp_(mean.expand_as(self.split_mean), self.momentum)
            self.split_var.lerp_((var * total / (total - 1)).expand_as(self.split_var), self.momentum)
        shape = (1, -1, *[1] * (inputs.ndim - 2))
        return ((own - mean.view(shape)) * (var + self.eps).rsqrt().view(shape)).to(inputs.dtype)

    def _scaled(self, normalised: Tensor) -> Tensor:
        if self.weight is None or self.bias is None:
            return normalised
        shape = (1, -1, *[1] * (normalised.ndim - 2))
        return normalised * self.weight.view(shape) + self.bias.view(shape)


def split_norms(module: nn.Module) -> dict[str, SubBatchNorm]:
    """Put a `SubBatchNorm` with the same weights and statistics in the place of every batch norm, in place.

    Returns:
        those there are then, by name.

    Raises:
        ValueError: a batch norm does more than torch's, or has no running averages.
    """
    for parent, name, norm in _children(module, nn.modules.batchnorm._BatchNorm):
        if type(norm) not in PLAIN or norm.momentum is None or not norm.track_running_stats:
            raise ValueError(f"{norm}: only torch's own batch norms with running averages can be split.")
        split = SubBatchNorm(norm.num_features, 1, norm.eps, norm.momentum, norm.affine).to(norm.running_mean.device)
        split.load_state_dict(norm.state_dict())
        split.plain = type(norm)
        setattr(parent, name, split.train(norm.training))
    return {name: norm for name, norm in module.named_modules() if isinstance(norm, SubBatchNorm)}


def plain_norms(module: nn.Module) -> None:
    """Put torch's batch norm in the place of every `SubBatchNorm` again, in place."""
    for parent, name, norm in _children(module, SubBatchNorm):
        affine = norm.weight is not None
        plain = norm.plain(norm.channels, norm.eps, norm.momentum, affine).to(norm.running_mean.device)
        plain.load_state_dict(norm.state_dict())
        setattr(parent, name, plain.train(norm.training))


@torch.no_grad()
def precise_statistics(norms: Iterable[SubBatchNorm], run: Callable[[Any], Any], batches: Iterable[Any]) -> None:
    """Set the statistics to the mean over some batches, in the place of the running averages.

    Args:
        norms: all that `run` passes, in training mode.
        run: what the batches go through.
        batches: of one shape, the stage's own.
    """
    norms = list(norms)
    momenta = [norm.momentum for norm in norms]
    for number, batch in enumerate(batches):
        for norm in norms:
            norm.momentum = 1 / (number + 1)
        run(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.aggregate()


def _children(module: nn.Module, kind: type[nn.Module]) -> list[tuple[nn.Module, str, Any]]:
    """Every module of a kind below a module, with its parent and its name there."""
    return [
        (parent, name, child)
        for parent in module.modules()
        for name, child in parent.named_children()
        if isinstance(child, kind)
    ]


def _aggregate(norm: Any, *_: Any) -> None:
    norm.aggregate()


def _spread(norm: Any, _: Any) -> None:
    """What a plain state dict says holds for all splits."""
    with torch.no_grad():
        norm.split_mean.copy_(norm.running_mean.expand_as(norm.split_mean))
        norm.split_var.copy_(norm.running_var.expand_as(norm.split_var))
