"""The perceptual distance LPIPS (Zhang et al. 2018), by the lpips package."""

from __future__ import annotations

import functools
import hashlib
import math
import warnings
from pathlib import Path

import lpips
import torch
from torch import Tensor
from torchvision.models import AlexNet_Weights, SqueezeNet1_1_Weights, VGG16_Weights

from hparams.errors import UserError
from hparams.settings.models import VQGANSettings
from models.vqgan.vqgan import PerceptualLoss
from utils.machine.devices import without_tf32
from utils.pretrained.weights import pretrained_file
from utils.runs.checkpoints import load_into, load_state_dict, part_of

_TRUNKS = {
    "alex": AlexNet_Weights.IMAGENET1K_V1.url,
    "vgg": VGG16_Weights.IMAGENET1K_V1.url,
    "squeeze": SqueezeNet1_1_Weights.IMAGENET1K_V1.url,
}


class LPIPS:
    """Distances of images; frozen, in evaluation mode, and no part of the model that holds it.

    `symmetric`: show it images in [−1,1], as it expects; otherwise in [0,1], as the published code does.
    """

    def __init__(self, network: torch.nn.Module, device: torch.device, *, symmetric: bool) -> None:
        layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
        network.to(device, memory_format=layout)  # type: ignore[call-overload]
        self._network = network.eval().requires_grad_(False)
        self._symmetric = symmetric

    @functools.cached_property
    def weights(self) -> str:
        """Which: see `digest_of`."""
        return digest_of(self._network)

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Images [B,3,H,W] in [0,1], twice → distances [B,1,1,1]."""
        return self._network(x, y, normalize=self._symmetric)

    def __deepcopy__(self, memo: dict[int, object]) -> LPIPS:
        return self  # it never changes, so copies of a model share it


def build_perceptual(settings: VQGANSettings, device: torch.device) -> PerceptualLoss | None:
    """The perceptual loss that the settings ask for, or None. UserError: its weights cannot be had, or do not fit."""
    if not settings.is_perceptual:
        return None
    what = "the VGG16 weights of --perceptual lpips"
    instead = "name a file by --perceptual_weights_file, or use --perceptual none"
    network = load_lpips("vgg", settings.perceptual_weights_file, what=what, instead=instead)
    return LPIPS(network, device, symmetric=settings.lpips_input == "symmetric")


class LPIPSEmbedding:
    """Images to vectors whose squared Euclidean distance is their LPIPS; frozen.

    LPIPS is a sum over layers of the mean over places of w_c · (difference of unit-normalised features)²: the square
    roots of weights and means are taken into the vector.
    """

    def __init__(self, network: lpips.LPIPS, device: torch.device) -> None:
        self._network = network.to(device).eval().requires_grad_(False)
        weights = [head.model[-1].weight.flatten() for head in network.lins]
        if any((weight < 0).any() for weight in weights):
            raise UserError("these LPIPS weights have negative heads, which make no distance: use others")
        self._weights = [weight.sqrt()[:, None, None] for weight in weights]

    @torch.no_grad()
    @without_tf32()
    def __call__(self, images: Tensor) -> Tensor:
        """Images [B,3,H,W] in [0,1] → [B,D] float32, D about 10 (alex) to 125 (vgg) times H·W."""
        with torch.autocast(images.device.type, enabled=False):
            features = self._network.net(self._network.scaling_layer(2 * images.float() - 1))
            pairs = zip(map(lpips.normalize_tensor, features), self._weights, strict=True)
            parts = [(layer * (weight / math.sqrt(layer[0, 0].numel()))).flatten(1) for layer, weight in pairs]
        return torch.cat(parts, dim=1)


def load_lpips(
    net: str, weights: str | None, *, what: str | None = None, instead: str = "name a file by --lpips_weights"
) -> lpips.LPIPS:
    """LPIPS with trunk `net`: alex, vgg or squeeze.

    weights: torchvision's file of the trunk, a whole LPIPS state dict, or (vgg) a published VQGAN checkpoint; None for
    torchvision's file in torch's cache, which is downloaded at its first use. `what` and `instead` are for the message
    where that fails.

    Raises:
        NoWeightsError: there is no file, and no download.
        UserError: the file is not usable.
    """
    what = what or f"the weights of --lpips_net {net}"
    path = Path(weights) if weights else pretrained_file(_TRUNKS[net], what=what, instead=instead)
    network, content = untrained_lpips(net), load_state_dict(path)
    whole = part_of(content, "perceptual.") or content
    if "features.0.weight" not in whole:
        load_into(network, whole, path)
        return network
    own = network.net.state_dict()
    trunk = {name: whole.get("features." + name.split(".", 1)[1]) for name in own}
    load_into(network.net, {name: value for name, value in trunk.items() if value is not None}, path)
    return network


def digest_of(network: torch.nn.Module) -> str:
    """The first digits of a hash of a network's weights."""
    content = b"".join(value.cpu().numpy().tobytes() for value in network.state_dict().values())
    return hashlib.sha256(content).hexdigest()[:8]


def untrained_lpips(net: str) -> lpips.LPIPS:
    """LPIPS with a trunk of random weights: alex, vgg or squeeze. The global random stream stays as it is."""
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.filterwarnings("ignore", category=UserWarning, module="torchvision")  # of arguments that lpips uses
        return lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
