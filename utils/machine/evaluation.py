"""Evaluating without a trace: modes come back as they were, and no gradients are recorded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Put modules into evaluation mode without gradients; afterwards every submodule has its former mode."""
    modes = [(module, module.training) for root in modules for module in root.modules()]
    # Autocast keeps the casts of weights that could have gradients, and makes those of frozen ones anew at every use.
    frozen = [parameter for root in modules for parameter in root.parameters() if not parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    for root in modules:
        root.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter in frozen:
            parameter.requires_grad_(False)
