"""Batch normalisation, with the swish that follows it: little memory in training, statistics over all processes."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from nvae_codec.model.modules import modules_of

EPSILON = 1e-5
MOMENTUM = 0.05  # weight of a batch's statistics in the running ones

Statistics = tuple[Tensor, Tensor, float]  # running mean, running variance, momentum

_frozen: ContextVar[bool] = ContextVar("frozen", default=False)


@contextmanager
def frozen_statistics() -> Iterator[None]:
    """Within, batch norms in training mode leave their running statistics alone: for passes that repeat an earlier."""
    token = _frozen.set(True)
    try:
        yield
    finally:
        _frozen.reset(token)


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation with NVAE's constants, optionally followed by swish: `BatchNorm(channels)(x, swish=True)`.

    In training, with `fused` set, swish keeps nothing for the backward pass: its argument is computed again from what
    the normalisation keeps anyway. That is a third less memory for activations, for a few percent of time. With
    `processes` set to a process group, mean and variance are those of the joint batch of all processes.
    """

    num_batches_tracked: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int):
        super().__init__(channels, eps=EPSILON, momentum=MOMENTUM)
        self.fused = True
        self.processes: dist.ProcessGroup | None = None

    def forward(self, x: Tensor, swish: bool = False) -> Tensor:
        if not self.training:
            y = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
            return F.silu(y) if swish else y
        fuse = swish and self.fused
        updated = None if _frozen.get() else (self.running_mean, self.running_var, self.momentum)
        if updated:
            self.num_batches_tracked.add_(1)
        if self.processes is None:
            y = _Normalise.apply(x, self.weight, self.bias, fuse, updated)
        else:
            y = _NormaliseJointly.apply(x, self.weight, self.bias, fuse, updated, self.processes)
        return F.silu(y) if swish and not fuse else y


def synchronise(model: nn.Module, processes: dist.ProcessGroup | None) -> None:
    """Make every batch norm of `model` count the batches of all `processes` as one (None: each its own)."""
    for norm in modules_of(model, BatchNorm):
        norm.processes = processes


def _by_channel(values: Tensor) -> Tensor:
    return values.view(1, -1, 1, 1)


class _Normalise(torch.autograd.Function):
    """Batch norm in training mode, then swish if asked, on the batch of this process."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, swish: bool, updated: Statistics | None) -> Tensor:
        running_mean, running_var, momentum = updated or (None, None, 0.0)
        y, mean, inverse = torch.native_batch_norm(x, weight, bias, running_mean, running_var, True, momentum, EPSILON)
        ctx.save_for_backward(x, weight, bias, mean, inverse)
        ctx.swish = swish
        return F.silu(y) if swish else y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, inverse = ctx.saved_tensors
        if ctx.swish:
            gradient = _swish_backward(gradient, x, weight * inverse, bias - mean * weight * inverse)
        # The kernels of some devices want both in one memory format.
        gradient = gradient.contiguous(memory_format=_memory_format(x))
        gradients = torch.ops.aten.native_batch_norm_backward(
            gradient, x, weight, None, None, mean, inverse, True, EPSILON, [True, True, True]
        )
        return *gradients, None, None


class _NormaliseJointly(torch.autograd.Function):
    """The same with the statistics of the joint batch of all processes, which may hold unequally many samples."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        swish: bool,
        updated: Statistics | None,
        processes: dist.ProcessGroup,
    ) -> Tensor:
        exact = x.to(weight.dtype)  # low precision would spoil the statistics
        var, mean = torch.var_mean(exact, dim=(0, 2, 3), correction=0)
        own = torch.cat([mean, var, mean.new_tensor([x.numel() // x.shape[1]])])
        parts = [torch.empty_like(own) for _ in range(dist.get_world_size(processes))]
        dist.all_gather(parts, own, group=processes)
        channels = x.shape[1]
        means, variances, counts = torch.stack(parts).split([channels, channels, 1], dim=1)
        count = counts.sum()
        mean = (counts * means).sum(dim=0) / count
        var = (counts * (variances + (means - mean).square())).sum(dim=0) / count
        if updated:
            running_mean, running_var, momentum = updated
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((var * count / (count - 1)).to(running_var.dtype), momentum)
        inverse = torch.rsqrt(var + EPSILON)
        scale, shift = weight * inverse, bias - mean * weight * inverse
        y = torch.addcmul(_by_channel(shift), exact, _by_channel(scale)).to(x.dtype)
        ctx.save_for_backward(x, scale, shift, mean, inverse, count)
        ctx.swish, ctx.processes = swish, processes
        return F.silu(y) if swish else y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, shift, mean, inverse, count = ctx.saved_tensors
        if ctx.swish:
            gradient = _swish_backward(gradient, x, scale, shift)
        gradient = gradient.to(scale.dtype)
        centred = x.to(scale.dtype) - _by_channel(mean)
        of_bias = gradient.sum(dim=(0, 2, 3))
        projection = (gradient * centred).sum(dim=(0, 2, 3))
        joint = torch.stack([of_bias, projection])
        dist.all_reduce(joint, group=ctx.processes)
        joint = joint / count
        along = _by_channel(joint[1] * inverse.square())
        of_x = _by_channel(scale) * (gradient - _by_channel(joint[0]) - centred * along)
        # Of weight and bias each process reports its own part: the training loop averages all gradients.
        return of_x.to(x.dtype), projection * inverse, of_bias, None, None, None


def _swish_backward(gradient: Tensor, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Gradient before swish, whose argument is x * scale + shift per channel."""
    argument = torch.addcmul(_by_channel(shift), x.to(scale.dtype), _by_channel(scale)).to(x.dtype)
    return torch.ops.aten.silu_backward(gradient, argument)


def _memory_format(x: Tensor) -> torch.memory_format:
    channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if channels_last else torch.contiguous_format
