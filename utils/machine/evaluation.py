"""Evaluating networks without changing them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards every submodule has its former mode."""
    modes = [(module, module.training) for root in modules for module in root.modules()]
    # Autocast caches the casts only of weights that require gradients; frozen ones would be cast at every use.
    frozen = [parameter for root in modules for parameter in root.parameters() if not parameter.requires_grad]
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        for root in modules:
            root.eval()
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter in frozen:
            parameter.requires_grad_(False)
