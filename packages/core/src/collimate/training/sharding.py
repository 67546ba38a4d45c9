"""FSDP2: encoders are sharded block by block, what lies around them is replicated.

Switched on by `trainer.strategy: fsdp2`; methods need no code of their own. Checkpoints are sharded folders, the
model folder at the end of a run is whole.
"""

from __future__ import annotations

from collections import Counter

from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from collimate import distributed
from collimate.configurable import build
from collimate.encoders import Encoder
from collimate.encoders.depths import blocks


class Fsdp2Strategy(ModelParallelStrategy):
    """Lightning's strategy with all ranks in one data-parallel group."""

    def setup_environment(self) -> None:
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()


StrategyRegistry.register("fsdp2", Fsdp2Strategy, override=True, description="FSDP2 over all ranks")


def shard(method: nn.Module, mesh: DeviceMesh) -> None:
    """Shard every encoder of a method over `mesh`, in place; does nothing the second time.

    The blocks of an encoder are the children of its module lists and sequences of at least two alike modules.
    Parameters outside encoders (projections, `logit_scale`), and those that several blocks share (BEATs' table of
    relative positions), are small: each rank keeps them whole and their gradients are averaged as they arrive.

    Raises:
        ValueError: the method cannot be sharded (`Method.shardable`).
    """
    if is_sharded(method):
        return
    if not getattr(method, "shardable", True):
        raise ValueError(
            f"{type(method).__name__} runs parts of its encoders by themselves, whose weights FSDP2 would not gather: "
            "train it with --trainer.strategy ddp."
        )
    for encoder in _outermost(method):
        names = Counter(parameter for _, parameter in encoder.named_parameters(remove_duplicate=False))
        shared = {parameter for parameter, count in names.items() if count > 1}
        for block in reversed(blocks(encoder).values()):  # those inside of others first, as FSDP2 wants it
            fully_shard(block, mesh=mesh, ignored_params=shared)
        fully_shard(encoder, mesh=mesh)
    group = mesh.get_group()

    def average(parameter: Tensor) -> None:
        if parameter.grad is not None:
            parameter.grad = distributed.all_mean(parameter.grad, group)

    for parameter in method.parameters():
        if parameter.requires_grad and not isinstance(parameter, DTensor):
            parameter.register_post_accumulate_grad_hook(average)


def _outermost(module: nn.Module) -> dict[Encoder, None]:
    """The encoders that lie in no other, each once."""
    if isinstance(module, Encoder):
        return {module: None}
    return {encoder: None for child in module.children() for encoder in _outermost(child)}


def reshard(module: nn.Module) -> None:
    """Let go of whole weights that forward passes without a backward one have left on each rank."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def is_sharded(method: nn.Module) -> bool:
    """Whether any parameter is spread over ranks."""
    return any(isinstance(parameter, DTensor) for parameter in method.parameters())


def unsharded(method: nn.Module) -> nn.Module:
    """The method itself or, where it is sharded, a whole copy of it on the CPU. All ranks must call this."""
    if not is_sharded(method):
        return method
    state = {
        name: (value.full_tensor() if isinstance(value, DTensor) else value).cpu()
        for name, value in method.state_dict().items()
    }
    whole = build(method.config(), trust=[type(method).__module__.split(".")[0]])  # type: ignore[operator]
    whole.load_state_dict(state)
    return whole.train(method.training)
