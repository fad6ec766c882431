"""Finding the modules of a network by what they are."""

from typing import TypeVar

from torch import nn

Kind = TypeVar("Kind", bound=nn.Module)


def modules_of(network: nn.Module, kind: type[Kind]) -> list[Kind]:
    """All modules of one kind in a network, itself included, in the order in which they were registered."""
    return [module for module in network.modules() if isinstance(module, kind)]
