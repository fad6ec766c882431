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

    @torch.no_grad()
    def start(self) -> None:
        """The many iterations before the first step; nothing later."""
        if self._started:
            return
        self._started = True
        for index in range(len(self._groups)):
            self._iterate(index, self._matrices(index), FIRST_POWER_ITERATIONS - POWER_ITERATIONS)

    def forward(self) -> Tensor:
        """The sum, with its gradient by the weights. Each call does a few iterations more."""
        self.start()
        total: float | Tensor = 0.0
        for index in range(len(self._groups)):
            matrices = self._matrices(index)
            with torch.no_grad():
                self._iterate(index, matrices, POWER_ITERATIONS)
            # Copies: autograd keeps the vectors of this step while the next one changes the state.
            u, v = (vectors.clone() for vectors in self._vectors(index))
            total = total + torch.einsum("no,nok,nk->", u, matrices, v)
        return torch.as_tensor(total)

    def _matrices(self, index: int) -> Tensor:
        """Of the convolutions of one shape, [N, O, K]."""
        return torch.stack([conv.effective_weight().flatten(1) for _, conv in self._groups[index]])

    def _vectors(self, index: int) -> tuple[Tensor, Tensor]:
        return getattr(self, f"u{index}"), getattr(self, f"v{index}")

    def _iterate(self, index: int, matrices: Tensor, iterations: int) -> None:
        u, v = self._vectors(index)
        for vectors in (u, v):  # those of a matrix that was almost zero for long
            dead = vectors.norm(dim=1, keepdim=True) < DEAD_NORM
            vectors.copy_(torch.where(dead, vectors.shape[1] ** -0.5, vectors))
        for _ in range(iterations):
            v.copy_(_normalised(torch.einsum("no,nok->nk", u, matrices)))
            u.copy_(_normalised(torch.einsum("nok,nk->no", matrices, v)))

    def vectors(self) -> dict[str, tuple[Tensor, Tensor]]:
        """The vectors (u, v) of every convolution, by its name in the network."""
        return {
            name: (u[position], v[position])
            for index, members in enumerate(self._groups)
            for u, v in [self._vectors(index)]
            for position, (name, _) in enumerate(members)
        }

    def get_extra_state(self) -> bool:
        return self._started

    def set_extra_state(self, state: bool) -> None:
        self._started = state


def _normalised(vectors: Tensor) -> Tensor:
    return vectors / vectors.norm(dim=1, keepdim=True).clamp(min=MIN_NORM)
