"""Flow cells of the posterior: z becomes z - mu(z), an autoregressive shift (NVAE, section 3.4 and appendix).

mu at a position depends on positions before it in raster order alone (after it, in a mirrored cell) and on lower
channels at the same position. So the Jacobian has a diagonal of ones, and the density of a draw does not change. Cells
come in pairs, a plain one and then a mirrored one; `num_nf` counts pairs. They do not look at the image.
"""

from types import ModuleType

import torch
from torch import Tensor, nn

from nvae_codec.likelihoods.gaussian import RAW_BITS

HIDDEN = 6  # hidden channels for every latent channel


def flow_cells(ops: ModuleType, latents: int, pairs: int) -> nn.ModuleList:
    """The cells of one group of `latents` channels, in the order in which a draw from the posterior passes them."""
    return nn.ModuleList(FlowCell(ops, latents, mirrored) for _ in range(pairs) for mirrored in (False, True))


class FlowCell(nn.Module):
    """mu(z) for z [B, L, H, W], made of the classes in `ops`."""

    def __init__(self, ops: ModuleType, latents: int, mirrored: bool):
        super().__init__()
        hidden = HIDDEN * latents
        owner = torch.arange(latents).repeat_interleave(HIDDEN)  # latent channel of every hidden channel
        channel = torch.arange(latents)
        first = causal_mask(owner[:, None] > channel, 3, mirrored)
        depthwise = causal_mask(torch.ones(hidden, 1, dtype=torch.bool), 5, mirrored)
        last = causal_mask(channel[:, None] >= owner, 1, mirrored)
        self.first = ops.Conv(latents, hidden, 3, bias=False, activation="elu", mask=first)
        self.depthwise = ops.Conv(hidden, hidden, 5, groups=hidden, bias=False, activation="elu", mask=depthwise)
        self.activate = ops.Activate(hidden, "elu")  # a second time: so does the release
        self.last = ops.Conv(hidden, latents, mask=last, gain=0.1, raw=(RAW_BITS,) * latents)

    def forward(self, z):
        return self.last(self.activate(self.depthwise(self.first(z))))


def causal_mask(centre: Tensor, kernel_size: int, mirrored: bool = False) -> Tensor:
    """Mask [O, I, k, k] of zeros and ones: taps before the centre in raster order (after it, if mirrored), and the
    centre where `centre` [O, I] says so. Mirroring turns positions about, not channels.
    """
    taps = torch.arange(kernel_size**2).view(kernel_size, kernel_size)
    middle = kernel_size**2 // 2
    mask = (taps < middle).expand(*centre.shape, -1, -1) | (taps == middle) & centre[..., None, None]
    return (mask.flip(2, 3) if mirrored else mask).float()
