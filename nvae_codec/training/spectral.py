"""Spectral regularisation: the spectral norms of all convolutions, by power iteration."""

import torch
from torch import Tensor, nn

from nvae_codec.model.ops import Conv

FIRST_POWER_ITERATIONS = 40
POWER_ITERATIONS = 4  # in every later step
MIN_NORM = 1e-3  # by which a vector of the power iteration is divided
DEAD_NORM = 1e-20  # of such a vector: it would stay zero for ever


class SpectralRegularisation(nn.Module):
    """Sum of the spectral norms of all convolutions (NVAE, section 3.2), estimated by power iteration.

    The matrix of a convolution is its effective weight as [O, I / groups * k * k]. Matrices of one shape are treated
    together. The vectors of the iteration go on from step to step; they are part of the state, so that a resumed run
    continues exactly (the release starts them anew).
    """

    def __init__(self, network: nn.Module, seed: int = 1):
        super().__init__()
        by_shape: dict[tuple[int, int], list[tuple[str, Conv]]] = {}
        for name, module in network.named_modules():
            if isinstance(module, Conv) and module.regularised:
                rows, columns = module.weight.flatten(1).shape
                by_shape.setdefault((rows, columns), []).append((name, module))
        self._groups = list(by_shape.values())  # not registered: they are the network's
        self._started = False
        generator = torch.Generator().manual_seed(seed)
        for index, ((rows, columns), members) in enumerate(by_shape.items()):
            for name, length in (("u", rows), ("v", columns)):
                vectors = torch.randn(len(members), length, generator=generator)
                self.register_buffer(f"{name}{index}", nn.functional.normalize(vectors, dim=1))

    def forward(self) -> Tensor:
        """The sum, with its gradient by the weights. Each call does a few iterations more, the first one many."""
        iterations = POWER_ITERATIONS if self._started else FIRST_POWER_ITERATIONS
        self._started = True
        total: float | Tensor = 0.0
        for index, members in enumerate(self._groups):
            matrices = torch.stack([conv.effective_weight().flatten(1) for _, conv in members])  # [N, O, K]
            u, v = getattr(self, f"u{index}"), getattr(self, f"v{index}")
            with torch.no_grad():
                for vectors in (u, v):  # those of a matrix that was almost zero for long
                    dead = vectors.norm(dim=1, keepdim=True) < DEAD_NORM
                    vectors.copy_(torch.where(dead, vectors.shape[1] ** -0.5, vectors))
                for _ in range(iterations):
                    v.copy_(_normalised(torch.einsum("no,nok->nk", u, matrices)))
                    u.copy_(_normalised(torch.einsum("nok,nk->no", matrices, v)))
            # Copies: autograd keeps the vectors of this step while the next one changes the state.
            total = total + torch.einsum("no,nok,nk->", u.clone(), matrices, v.clone())
        return torch.as_tensor(total)

    def vectors(self) -> dict[str, tuple[Tensor, Tensor]]:
        """The vectors (u, v) of every convolution, by its name in the network."""
        return {
            name: (getattr(self, f"u{index}")[position], getattr(self, f"v{index}")[position])
            for index, members in enumerate(self._groups)
            for position, (name, _) in enumerate(members)
        }

    def get_extra_state(self) -> bool:
        return self._started

    def set_extra_state(self, state: bool) -> None:
        self._started = state


def _normalised(vectors: Tensor) -> Tensor:
    return vectors / vectors.norm(dim=1, keepdim=True).clamp(min=MIN_NORM)
