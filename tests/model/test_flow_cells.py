"""Flow cells: what each value depends on, volumes, inverses, and the KL of a draw that has passed them."""

import dataclasses
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from helpers import randomise_batch_norm

from nvae_codec.model import ops
from nvae_codec.model.config import NVAEConfig
from nvae_codec.model.flows import HIDDEN, FlowCell, causal_mask, flow_cells
from nvae_codec.model.nvae import NVAE, default_noise

TINY = NVAEConfig(
    image_size=8,
    num_mixtures=1,
    num_latent_scales=2,
    num_groups_per_scale=2,
    ada_groups=True,
    num_latent_per_group=2,
    num_channels_enc=4,
    num_channels_dec=4,
    num_preprocess_blocks=1,
    num_preprocess_cells=1,
    num_postprocess_blocks=1,
    num_postprocess_cells=1,
    num_nf=2,
)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def lively(cell: FlowCell, seed: int = 0) -> FlowCell:
    """In float64, with weights of order one everywhere, those under the mask included: shifts as large as z itself."""
    random = torch.Generator().manual_seed(seed)
    cell.double()
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=random, dtype=torch.float64))
        for conv in (cell.first, cell.depthwise, cell.last):
            conv.log_gain.mul_(0.3)
    return cell


def lively_network(config: NVAEConfig = TINY, seed: int = 0) -> NVAE:
    torch.manual_seed(seed)
    model = NVAE(config)
    randomise_batch_norm(model)
    for group in model.flows:
        for number, cell in enumerate(group):
            lively(cell, seed + number)
    return model.double().eval()


def images(config: NVAEConfig, count: int = 2) -> torch.Tensor:
    shape = count, config.image_channels, config.image_size, config.image_size
    levels = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(3))
    return levels.double() / 255


def jacobian(function, z: torch.Tensor) -> torch.Tensor:
    """Of a function of one z [1, L, H, W], [H * W * L, H * W * L]: values ordered by position, then by channel."""
    matrix = torch.autograd.functional.jacobian(lambda one: function(one).permute(0, 2, 3, 1).flatten(), z)
    return matrix.permute(0, 1, 3, 4, 2).flatten(1)


def shift_away(*cells: FlowCell):
    def flow(z):
        for cell in cells:
            z = z - cell(z)
        return z

    return flow


# What a shift depends on


def in_reach(latents: int, height: int, width: int) -> torch.Tensor:
    """[H, W, L, H, W, L]: whether mu at the first position and channel may depend on z at the second.

    From the taps: hidden channels of block i see all channels at earlier taps of a 3 x 3 kernel and channels below i at
    its centre, then themselves at a 5 x 5 kernel's earlier taps and centre; mu of channel c sees the blocks up to c.
    """

    def before(side: int) -> list[tuple[int, int]]:
        reach = range(-(side // 2), side // 2 + 1)
        return [tap for tap in itertools.product(reach, reach) if tap < (0, 0)]

    reached = torch.zeros(height, width, latents, height, width, latents, dtype=torch.bool)
    for row, column, channel in itertools.product(range(height), range(width), range(latents)):
        for (up, left), block in itertools.product([*before(5), (0, 0)], range(channel + 1)):
            # Zeros of the padding are no hidden values: a path leads through positions inside.
            if not (0 <= row + up < height and 0 <= column + left < width):
                continue
            for other in range(latents):
                taps = [*before(3), (0, 0)] if other < block else before(3)
                for more_up, more_left in taps:
                    y, x = row + up + more_up, column + left + more_left
                    if 0 <= y < height and 0 <= x < width:
                        reached[row, column, channel, y, x, other] = True
    return reached


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("latents", [1, 2, 3])
def test_what_a_shift_depends_on(latents, mirrored):
    """Exactly what comes before: nothing more, or there is no inverse; nothing less, or the cell is not NVAE's."""
    cell = lively(FlowCell(ops, latents, mirrored))
    height, width = 5, 8  # wider than the reach, so that its end is seen
    depends = jacobian(cell, draw(1, latents, height, width)).abs() > 0
    expected = in_reach(latents, height, width)
    if mirrored:  # positions turn about, channels do not
        expected = expected.flip(0, 1, 3, 4)
    assert torch.equal(depends, expected.view(depends.shape))
    assert depends.any()


def test_a_mirrored_cell_is_a_plain_one_of_the_turned_image():
    plain, mirrored = lively(FlowCell(ops, 3, False)), lively(FlowCell(ops, 3, True))
    mirrored.load_state_dict(
        {name: tensor.flip(2, 3) if tensor.ndim == 4 else tensor for name, tensor in plain.state_dict().items()}
    )
    z = draw(2, 3, 5, 6)
    torch.testing.assert_close(mirrored(z.flip(2, 3)), plain(z).flip(2, 3), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(mirrored(z), plain(z))


def test_masks_are_zeros_and_ones_and_no_part_of_the_state():
    cell = FlowCell(ops, 3, True)
    assert not [name for name in cell.state_dict() if "mask" in name]
    for conv in (cell.first, cell.depthwise, cell.last):
        assert conv.mask.shape == conv.weight.shape and set(conv.mask.unique().tolist()) <= {0, 1}
    assert torch.equal(cell.first.mask, FlowCell(ops, 3, False).first.mask.flip(2, 3))
    assert causal_mask(torch.ones(2, 3, dtype=torch.bool), 1).sum() == 6
    # They go where the network goes.
    assert cell.double()(draw(1, 3, 4, 4)).dtype == torch.float64
    assert cell.to("meta").first.mask.is_meta


def test_masked_weights_have_no_say():
    cell = lively(FlowCell(ops, 2, False))
    z = draw(2, 2, 5, 5)
    before = cell(z)
    before.square().sum().backward()
    for conv in (cell.first, cell.depthwise, cell.last):
        hidden = conv.mask == 0
        assert (conv.weight.grad[hidden] == 0).all() and (conv.weight.grad[~hidden] != 0).all()
        assert (conv.effective_weight()[hidden] == 0).all()
        with torch.no_grad():
            conv.weight[hidden] = 1e3  # nor have they a part in the norms
    assert torch.equal(cell(z), before)


# Volumes and inverses


@pytest.mark.parametrize("mirrored", [False, True])
def test_jacobian_is_triangular_with_ones(mirrored):
    cell = lively(FlowCell(ops, 3, mirrored))
    matrix = jacobian(shift_away(cell), draw(1, 3, 4, 4))
    if mirrored:  # the order of what comes first: last position first
        places = torch.arange(48).view(16, 3).flip(0).flatten()
        matrix = matrix[places][:, places]
    assert torch.equal(matrix.diagonal(), torch.ones(48, dtype=torch.float64))
    assert (matrix.triu(1) == 0).all()
    assert matrix.tril(-1).abs().max() > 0.1


def test_volume_is_preserved_by_the_cells_of_a_group():
    model = lively_network()
    for group in range(model.config.num_groups):
        side = model.config.side(model.config.scale_of_group[group])
        matrix = jacobian(lambda z, group=group: model.flow(group, z), draw(1, 2, side, side))
        sign, logarithm = torch.linalg.slogdet(matrix)
        assert sign == 1 and abs(logarithm) < 1e-10
        assert not torch.allclose(matrix, torch.eye(len(matrix), dtype=torch.float64), atol=0.1)


def invert(cell: FlowCell, shifted: torch.Tensor) -> torch.Tensor:
    """z from z - mu(z) by z <- shifted + mu(z): each pass makes at least one more position right."""
    z = shifted
    for passes in itertools.count(1):
        following = shifted + cell(z)
        if torch.equal(following, z):
            return z
        assert passes <= z[0].numel() + 1
        z = following


@pytest.mark.parametrize("mirrored", [False, True])
def test_inverse_by_iteration(mirrored):
    cell = lively(FlowCell(ops, 2, mirrored))
    z = draw(2, 2, 4, 4)
    shifted = z - cell(z)
    assert (shifted - z).abs().max() > 0.3
    torch.testing.assert_close(invert(cell, shifted), z, rtol=1e-9, atol=1e-9)


def test_cells_of_a_group_undone_in_reverse():
    """Two pairs of a plain and a mirrored cell, in that order."""
    model = lively_network()
    cells = list(model.flows[1])
    assert [bool(cell.first.mask[0, 0, 2, 2]) for cell in cells] == [False, True, False, True]
    assert len(flow_cells(ops, 2, 3)) == 6 and len(flow_cells(ops, 2, 0)) == 0
    z = draw(1, 2, 4, 4)
    flowed = model.flow(1, z)
    assert torch.equal(flowed, shift_away(*cells)(z))
    for cell in reversed(cells):
        flowed = invert(cell, flowed)
    torch.testing.assert_close(flowed, z, rtol=1e-7, atol=1e-7)


# In the network


def test_parameters_and_where_they_start():
    torch.manual_seed(0)
    cell = FlowCell(ops, 20, False)
    assert sum(parameter.numel() for parameter in cell.parameters()) == 54_560 // 2
    assert [conv.bias is None for conv in (cell.first, cell.depthwise, cell.last)] == [True, True, False]
    for conv, gain in ((cell.first, 1), (cell.depthwise, 1), (cell.last, 0.1)):
        bound = 1 / math.sqrt(conv.weight[0].numel())
        assert 0.9 * bound < conv.weight.abs().max() <= bound
        norm = (conv.weight * conv.mask).flatten(1).norm(dim=1)
        torch.testing.assert_close(conv.log_gain.flatten(), torch.log(norm + 0.01) + math.log(gain))
        effective = conv.effective_weight().flatten(1).norm(dim=1)
        torch.testing.assert_close(effective, gain * (norm + 0.01) * norm / (norm + 1e-5))
    assert HIDDEN == 6 and cell.first.weight.shape == (120, 20, 3, 3)


def test_elu_is_applied_twice():
    cell = lively(FlowCell(ops, 2, False))
    z = draw(1, 2, 5, 5)
    hidden = F.elu(F.conv2d(z, cell.first.effective_weight(), padding=1))
    hidden = F.elu(F.conv2d(hidden, cell.depthwise.effective_weight(), padding=2, groups=12))
    expected = F.conv2d(F.elu(hidden), cell.last.effective_weight(), cell.last.bias)
    torch.testing.assert_close(cell(z), expected, rtol=1e-12, atol=1e-12)


def test_kl_is_that_of_the_draw():
    model, x = lively_network(), images(TINY)
    with torch.no_grad():
        elbo = model(x, default_noise(x, torch.Generator().manual_seed(1)))
    expected = []
    for (q, p), (drawn, flowed) in zip(elbo.normals, elbo.latents, strict=True):
        assert not torch.allclose(drawn, flowed, atol=0.01)
        log_q = torch.distributions.Normal(q.mean, q.sigma).log_prob(drawn)
        log_p = torch.distributions.Normal(p.mean, p.sigma).log_prob(flowed)
        expected.append((log_q - log_p).sum(dim=(1, 2, 3)))
    torch.testing.assert_close(elbo.kl, torch.stack(expected, dim=1), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(elbo.kl.sum(dim=1), elbo.log_q - elbo.log_p, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(elbo.kl_channels.sum(dim=2), elbo.kl, rtol=1e-11, atol=1e-11)


def test_the_decoder_sees_what_the_flows_made():
    model, x = lively_network(), images(TINY)

    def decoded(latents) -> torch.Tensor:
        state = model.start(len(x))
        for group, z in enumerate(latents):
            state = model.update(group, state, z)
        return model.pixels(state, model.draft_of(x))

    with torch.no_grad():
        elbo = model(x, default_noise(x, torch.Generator().manual_seed(1)))
        torch.testing.assert_close(decoded(z for _, z in elbo.latents), elbo.output)
        assert not torch.allclose(decoded(z for z, _ in elbo.latents), elbo.output, atol=1e-3)


def test_without_shifts_the_estimate_averages_to_the_exact_kl():
    """A draw's log q - log p has the KL as its mean. Images of one batch are draws of one posterior here."""
    config = dataclasses.replace(TINY, num_nf=1, num_latent_scales=1, num_groups_per_scale=2)
    model = lively_network(config)
    with torch.no_grad():
        for group in model.flows:
            for cell in group:
                cell.last.log_gain.fill_(-300)
                cell.last.bias.zero_()
    count = 4000
    with torch.no_grad():
        x = images(config, 1).expand(count, -1, -1, -1)
        elbo = model(x, default_noise(x, torch.Generator().manual_seed(1)))
    for group, ((q, p), (drawn, flowed)) in enumerate(zip(elbo.normals, elbo.latents, strict=True)):
        assert torch.equal(drawn, flowed)
        # The prior of the second group differs from draw to draw, and with it the exact KL.
        error = elbo.kl[:, group] - q.kl(p).sum(dim=(1, 2, 3))
        assert error.std() > 0.1
        assert abs(error.mean()) < 4 * error.std() / math.sqrt(count)
    closed = torch.stack([q.kl(p).sum(dim=(1, 2, 3)) for q, p in elbo.normals], dim=1)
    plain = NVAE(dataclasses.replace(config, num_nf=0)).double().eval()
    plain.load_state_dict({name: tensor for name, tensor in model.state_dict().items() if "flows" not in name})
    with torch.no_grad():
        integer = plain(
            x[:5],
            lambda group, shape: (
                (elbo.latents[group][0] - elbo.normals[group][0].mean) / elbo.normals[group][0].sigma
            )[:5],
        )
    torch.testing.assert_close(integer.kl, closed[:5], rtol=1e-9, atol=1e-9)


def test_gradients_reach_every_weight():
    model = lively_network().train()
    x = images(TINY)
    model(x, default_noise(x, torch.Generator().manual_seed(1))).negative.mean().backward()
    for name, parameter in model.flows.named_parameters():
        assert torch.isfinite(parameter.grad).all() and (parameter.grad != 0).any(), name


def test_samples_of_the_prior_do_not_pass_the_flows():
    model = lively_network()
    before = model.sample(2, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for parameter in model.flows.parameters():
            parameter.fill_(math.nan)
    assert torch.equal(model.sample(2, generator=torch.Generator().manual_seed(1)), before)


def test_latents_stay_in_full_precision_under_autocast():
    model = lively_network().float()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        elbo = model(images(TINY).float())
    assert {z.dtype for pair in elbo.latents for z in pair} == {torch.float32}
    assert elbo.kl.dtype == torch.float32 and torch.isfinite(elbo.kl).all()


def test_one_latent_group_has_its_flows_too():
    config = dataclasses.replace(TINY, num_latent_scales=1, num_groups_per_scale=1)
    model = lively_network(config)
    with torch.no_grad():
        ((drawn, flowed),) = model(images(config)).latents
    assert config.is_vanilla and not torch.allclose(drawn, flowed, atol=0.01)
