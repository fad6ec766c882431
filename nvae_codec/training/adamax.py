"""Adamax of weights in many small tensors, as one vector: most of the time of torch's own goes into its calls."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Adamax(torch.optim.Adamax):
    """torch.optim.Adamax, number by number, with the same state: checkpoints of the one continue with the other.

    On a processor, where every weight has a gradient in every step, moments, gradients and weights are gathered in
    vectors. (On a GPU, and with gradients that are missing now and then, torch's own step is taken.)
    """

    def __init__(self, *values: Any, **options: Any):
        super().__init__(*values, **options)
        self._vectors: list[_Vector] | None = None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._vectors = None

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        (group,) = self.param_groups
        weights = group["params"]
        states = [self.state.get(weight, {}) for weight in weights]
        fits = closure is None and all(weight.is_cpu and weight.grad is not None for weight in weights)
        if not fits or not all(states) or len({state["step"].item() for state in states}) > 1:
            return super().step(closure)
        if self._vectors is None:  # after the first step, or one that was loaded
            self._vectors = [_Vector(weights) for _ in range(4)]
            for vector, name in zip(self._vectors, ("exp_avg", "exp_inf"), strict=False):
                vector.gather([state[name] for state in states])
                for state, part in zip(states, vector.parts, strict=True):
                    state[name] = part
        mean, largest, gradient, weight = self._vectors
        gradient.gather([weight.grad for weight in weights])
        weight.gather(weights)
        torch._foreach_add_([state["step"] for state in states], 1)
        beta1, beta2 = group["betas"]
        values = gradient.values.add_(weight.values, alpha=group["weight_decay"])
        mean.values.lerp_(values, 1 - beta1)
        torch.maximum(largest.values.mul_(beta2), values.abs_().add_(group["eps"]), out=largest.values)
        rate = group["lr"] / (1 - beta1 ** states[0]["step"].item())
        weight.values.addcdiv_(mean.values, largest.values, value=-rate)
        torch._foreach_copy_(weights, weight.parts)
        return None


class _Vector:
    """A vector with room for tensors like `others`; `parts` are views of it with their shapes and memory formats."""

    def __init__(self, others: list[Tensor]):
        sizes = [other.numel() for other in others]
        self.values = torch.empty(sum(sizes), dtype=others[0].dtype)
        starts = torch.tensor([0, *sizes]).cumsum(0).tolist()
        self.parts = [
            self.values.as_strided(other.shape, other.stride(), start)
            for other, start in zip(others, starts, strict=False)
        ]

    def gather(self, tensors: list[Tensor]) -> None:
        torch._foreach_copy_(self.parts, tensors)
