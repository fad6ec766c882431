"""Batch norm: the same as PyTorch's, with less kept for the backward pass; and the joint batch of several processes."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
import torch.nn.functional as F

from nvae_codec.model.norm import BatchNorm, frozen_statistics, synchronise

CHANNELS = 5


def norm(**attributes) -> BatchNorm:
    torch.manual_seed(3)
    module = BatchNorm(CHANNELS).double()
    with torch.no_grad():
        for tensor in (module.weight, module.bias, module.running_mean):
            tensor.normal_()
        module.running_var.uniform_(0.5, 2)
    for name, value in attributes.items():
        setattr(module, name, value)
    return module


def images(count: int = 6, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(count, CHANNELS, 4, 3, generator=generator, dtype=torch.float64) + 1


def plain(module: BatchNorm, x: torch.Tensor, swish: bool) -> torch.Tensor:
    """The formulas, written out."""
    mean, var = x.mean(dim=(0, 2, 3), keepdim=True), x.var(dim=(0, 2, 3), keepdim=True, correction=0)
    y = (x - mean) / torch.sqrt(var + 1e-5) * module.weight.view(1, -1, 1, 1) + module.bias.view(1, -1, 1, 1)
    return y * torch.sigmoid(y) if swish else y


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("swish", [True, False])
def test_value_gradients_and_running_statistics(swish, fused, memory_format):
    module = norm(fused=fused).train()
    before = module.running_mean.clone(), module.running_var.clone()
    x = images().contiguous(memory_format=memory_format).requires_grad_()
    cotangent = images(seed=1)
    y = module(x, swish)
    found = torch.autograd.grad(y, (x, module.weight, module.bias), cotangent)
    expected_y = plain(module, x, swish)
    expected = torch.autograd.grad(expected_y, (x, module.weight, module.bias), cotangent)
    torch.testing.assert_close(y, expected_y, rtol=1e-12, atol=1e-12)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(module.running_mean, 0.95 * before[0] + 0.05 * x.mean(dim=(0, 2, 3)))
    torch.testing.assert_close(module.running_var, 0.95 * before[1] + 0.05 * x.var(dim=(0, 2, 3)))
    assert module.num_batches_tracked == 1


@pytest.mark.parametrize("swish", [True, False])
def test_in_evaluation_the_running_statistics_count(swish):
    module = norm().eval()
    x = images()
    y = F.batch_norm(x, module.running_mean, module.running_var, module.weight, module.bias, eps=1e-5)
    torch.testing.assert_close(module(x, swish), F.silu(y) if swish else y)
    assert module.num_batches_tracked == 0


def test_fusing_keeps_less():
    def kept(fused: bool) -> int:
        sizes = []

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            norm(fused=fused).train()(images().requires_grad_(), swish=True)
        return sum(size for size in sizes if size > CHANNELS)

    assert kept(True) == images().numel() and kept(False) == 2 * images().numel()


def test_frozen_statistics():
    module = norm().train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with frozen_statistics():
        y = module(images())
    assert all(tensor.equal(before[name]) for name, tensor in module.state_dict().items())
    assert module(images()).equal(y) and not module.running_mean.equal(before["running_mean"])


def test_low_precision_input():
    module = norm().float().train()
    x = images().bfloat16().requires_grad_()
    y = module(x, swish=True)
    y.sum().backward()
    assert y.dtype == x.grad.dtype == torch.bfloat16 and module.weight.grad.dtype == torch.float32
    torch.testing.assert_close(y.double(), plain(norm(), x.detach().double(), True), rtol=0.02, atol=0.02)


def one_of_two(rank: int, file: str, results: str) -> None:
    """What each of two processes does with its part of the batch: two images, or four."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    module = norm().train()
    synchronise(module, dist.group.WORLD)
    x = images()[:2] if rank == 0 else images()[2:]
    cotangent = images(seed=1)[:2] if rank == 0 else images(seed=1)[2:]
    x = x.clone().requires_grad_()
    y = module(x, swish=True)
    gradients = torch.autograd.grad(y, (x, module.weight, module.bias), cotangent)
    torch.save([y.detach(), *gradients, module.running_mean, module.running_var], f"{results}{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.thorough
def test_two_processes_normalise_as_one(tmp_path):
    multiprocessing.spawn(one_of_two, (str(tmp_path / "meeting"), str(tmp_path / "result")), nprocs=2)
    first, second = (torch.load(tmp_path / f"result{rank}.pt") for rank in range(2))
    module, x = norm().train(), images().requires_grad_()
    y = module(x, swish=True)
    of_x, of_weight, of_bias = torch.autograd.grad(y, (x, module.weight, module.bias), images(seed=1))
    together = [
        torch.cat([first[0], second[0]]),
        torch.cat([first[1], second[1]]),
        first[2] + second[2],
        first[3] + second[3],
    ]
    for found, expected in zip(together, (y, of_x, of_weight, of_bias), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    for part in (first, second):
        torch.testing.assert_close(part[4], module.running_mean, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(part[5], module.running_var, rtol=1e-12, atol=1e-12)
