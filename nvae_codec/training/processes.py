"""Training by several processes, one for each GPU, as `torchrun` starts them on one machine or many."""
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from nvae_codec.errors import ModelError


@dataclass(frozen=True)
class Processes:
    """This process among those that train together."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and reports."""
        return self.rank == 0

    @property
    def group(self) -> "dist.ProcessGroup | None":
        """The group of all processes; None where there is only this one."""
        return dist.group.WORLD if self.size > 1 else None

    def mean(self, values: Tensor) -> Tensor:
        """The mean of `values` over all processes; every one of them must call this."""
        return mean_over(self.group, values)

    def wait(self) -> None:
        """Wait until all processes have come here."""
        if self.size > 1:
            dist.barrier()


def mean_over(group: "dist.ProcessGroup | None", values: Tensor) -> Tensor:
    """The mean of `values` over a process group, without gradient; of one process (None), `values`."""
    if group is None:
        return values
    total = values.detach().clone()
    dist.all_reduce(total, group=group)
    return total / dist.get_world_size(group)


def choose_device(name: str = "auto", local_rank: int = 0) -> torch.device:
    """The device of a process: "cpu", "cuda", or "auto" for a GPU where there is one. Raises ModelError."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ModelError(f"there is no usable GPU for the device {name!r}; --device cpu trains without")
    if local_rank >= torch.cuda.device_count():
        raise ModelError(f"process {local_rank} of this machine has no GPU of its own: there are "
                         f"{torch.cuda.device_count()}; start as many processes as there are GPUs")
    return torch.device(name, local_rank) if name == "cuda" else torch.device(name)


@contextmanager
def processes(device: str = "auto") -> Iterator[Processes]:
    """Join the other processes that `torchrun` has started, if it did; within, all of them can talk to each other."""
    size = int(os.environ.get("WORLD_SIZE", 1))
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    chosen = choose_device(device, local_rank)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if size == 1:
        yield Processes(chosen)
        return
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield Processes(chosen, dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
