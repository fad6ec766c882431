"""Adamax as one vector: the numbers, and the state, of torch's own."""

import copy

import pytest
import torch

from nvae_codec.training.adamax import Adamax

OPTIONS = dict(lr=1e-2, eps=1e-3, weight_decay=3e-4)


def weights() -> list[torch.nn.Parameter]:
    """Of several shapes, one in another memory format."""
    generator = torch.Generator().manual_seed(1)
    shapes = (4, 3, 3, 3), (4,), (4, 1, 1, 1), (2, 5)
    found = [torch.randn(shape, generator=generator) for shape in shapes]
    found[0] = found[0].contiguous(memory_format=torch.channels_last)
    return [torch.nn.Parameter(values) for values in found]


def set_gradients(parameters: list[torch.nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.grad = torch.empty_like(parameter).copy_(torch.randn(parameter.shape, generator=generator))


def assert_same(first, second) -> None:
    for one, other in zip(first[0], second[0], strict=True):
        assert torch.equal(one, other)
    states = (optimizer.state_dict()["state"] for optimizer in (first[1], second[1]))
    for one, other in zip(*(state.values() for state in states), strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert torch.equal(one[name], other[name]) and one[name].shape == other[name].shape, name


def pair() -> tuple:
    ours, theirs = weights(), weights()
    return (ours, Adamax(ours, **OPTIONS)), (theirs, torch.optim.Adamax(theirs, **OPTIONS))


@pytest.mark.parametrize("missing", [None, 0, 3])
def test_steps_are_those_of_torch(missing):
    """A gradient may be missing in step `missing`; the rate changes from step to step."""
    both = pair()
    for step in range(6):
        for parameters, optimizer in both:
            set_gradients(parameters, step)
            if step == missing:
                parameters[1].grad = None
            optimizer.param_groups[0]["lr"] = 1e-2 / (step + 1)
            optimizer.step()
        assert_same(*both)


def test_it_takes_all_weights_at_once(monkeypatch):
    parameters, optimizer = pair()[0]
    set_gradients(parameters, 1)
    optimizer.step()
    monkeypatch.setattr(torch.optim.Adamax, "step", lambda *_: pytest.fail("the slow way"))
    optimizer.step()
    assert len({state["exp_avg"].untyped_storage().data_ptr() for state in optimizer.state.values()}) == 1


@pytest.mark.parametrize("turn", [0, 1])
def test_the_one_continues_what_the_other_began(turn):
    """Their states are exchanged after three steps."""
    both = pair()
    for step in range(3):
        for parameters, optimizer in both:
            set_gradients(parameters, step)
            optimizer.step()
    states = [copy.deepcopy(optimizer.state_dict()) for _, optimizer in both]
    for (_, optimizer), state in zip(both, states[::-1] if turn else states, strict=True):
        optimizer.load_state_dict(state)
    for step in range(3, 6):
        for parameters, optimizer in both:
            set_gradients(parameters, step)
            optimizer.step()
    assert_same(*both)
