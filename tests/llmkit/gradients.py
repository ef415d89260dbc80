"""Autograd's numerical check of a module, in float64."""

import torch
from torch import Tensor, nn
from torch.func import functional_call


def assert_gradients(module: nn.Module, *inputs: object, fast: bool = False) -> None:
    """By every parameter, and by every input that asks for it.

    `fast` compares along random directions rather than entry by entry.
    """
    module = module.double()
    given = {name: p.detach().clone().requires_grad_() for name, p in module.named_parameters()}
    free = [x for x in inputs if isinstance(x, Tensor) and x.requires_grad]

    def run(*_: Tensor) -> Tensor:
        return functional_call(module, given, inputs)

    torch.autograd.gradcheck(run, (*free, *given.values()), fast_mode=fast)
