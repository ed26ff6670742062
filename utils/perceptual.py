"""The perceptual distance LPIPS with VGG16 (Zhang et al. 2018), by the lpips package."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path

import lpips
import torch
from torch import Tensor
from torchvision.models import VGG16_Weights

from hparams.settings import VQGANSettings
from models.vqgan import PerceptualLoss
from utils.checkpoints import load_into, load_state_dict, part_of
from utils.weights import pretrained_file


class LPIPS:
    """Distances of images; frozen, in evaluation mode, and no part of the model that holds it.

    `symmetric`: show it images in [−1,1], as it expects; otherwise in [0,1], as the published code does.
    """

    def __init__(self, network: torch.nn.Module, device: torch.device, *, symmetric: bool) -> None:
        self._network = network.to(device).eval().requires_grad_(False)
        self._symmetric = symmetric

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Images [B,3,H,W] in [0,1], twice → distances [B,1,1,1]."""
        return self._network(x, y, normalize=self._symmetric)

    def __deepcopy__(self, memo: dict[int, object]) -> LPIPS:
        return self  # it never changes, so copies of a model share it


def build_perceptual(settings: VQGANSettings, device: torch.device) -> PerceptualLoss | None:
    """The perceptual loss that the settings ask for, or None.

    Raises:
        UserError: its weights can be had neither from disk nor from the network.
    """
    if settings.perceptual == "none" or settings.perceptual_weight == 0:
        return None
    network = _from_file(
        Path(settings.perceptual_weights_file)
        if settings.perceptual_weights_file
        else pretrained_file(
            VGG16_Weights.IMAGENET1K_V1.url,
            what="the VGG16 weights of --perceptual lpips",
            instead="name a file by --perceptual_weights_file, or use --perceptual none",
        )
    )
    return LPIPS(network, device, symmetric=settings.lpips_input == "symmetric")


def _from_file(path: Path) -> torch.nn.Module:
    """LPIPS from torchvision's VGG16 file, from a whole LPIPS state dict, or from a published VQGAN checkpoint."""
    with _quiet():
        network = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    content = load_state_dict(path)
    whole = part_of(content, "perceptual.") or content
    if "features.0.weight" not in whole:
        load_into(network, whole, path)
        return network
    own = network.net.state_dict()
    trunk = {name: whole.get("features." + name.split(".", 1)[1]) for name in own}
    load_into(network.net, {name: value for name, value in trunk.items() if value is not None}, path)
    return network


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence torchvision's two warnings about arguments that lpips still uses."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="torchvision")
        yield
