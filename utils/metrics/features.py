"""Features of images, for FID, KID and PRDC: torch-fidelity's networks and R64 behind one interface."""

from __future__ import annotations

import hashlib
import io
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.feature_extractor_dinov2 import FeatureExtractorDinoV2
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3
from torch_fidelity.feature_extractor_vgg16 import FeatureExtractorVGG16
from torchvision.models import VGG16_Weights, vgg16

from hparams.errors import UserError
from utils.machine.devices import without_tf32
from utils.machine.files import sha256_of
from utils.pretrained.weights import pretrained_file
from utils.runs.checkpoints import load_into, load_state_dict, require_finite

_R64_SEED = 64
_CHUNK = 1 << 22
_DINOV2_CODE = "facebookresearch/dinov2:main"


@dataclass(frozen=True)
class FeatureExtractor:
    """A frozen network that turns images into features."""

    name: str  # as `--features` has it
    weights: str  # first digits of their file's SHA-256, of DINOv2 also those of its code's; or "fixed"
    network: nn.Module  # images uint8 [n,3,H,W] → one tensor [n,d], in a tuple, as torch-fidelity's extractors give it

    @property
    def conditions(self) -> dict[str, str]:
        """Which features, for results."""
        return {"features": self.name, "feature_weights": self.weights}

    @cached_property
    def width(self) -> int:
        """d, numbers per image."""
        device = next(self.network.parameters()).device
        return self(torch.zeros((1, 3, 32, 32), dtype=torch.uint8, device=device)).shape[1]

    @torch.no_grad()
    @without_tf32()
    def __call__(self, images: Tensor) -> Tensor:
        """Images uint8 [n,3,H,W], values 0..255 → features float32 [n,d], computed in float32.

        Raises:
            UserError: a feature is not finite, so the weights are of no use.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images must be uint8 [n,3,H,W], not {images.dtype} {list(images.shape)}")
        with torch.autocast(images.device.type, enabled=False):
            (features,) = self.network(images)
        if not features.isfinite().all():
            raise UserError(
                f"--features {self.name} gives values that are not finite: its weights ({self.weights}) are damaged; "
                "replace their file"
            )
        return features.float()


class R64(nn.Module):
    """A VGG16 of random weights (Naeem et al. 2020, arXiv 2002.09797, section 4): images uint8 [n,3,H,W] → ([n,64],).

    Images are resized to 64×64 (bilinear, antialiased) and scaled to [−1,1]. The network is torchvision's VGG16 with a
    last layer of 4096 → 64. Weights are uniform within ±sqrt(6 / fan-in) (He et al. 2015), drawn from a fixed seed, and
    biases are zero. They are the same to the bit on every machine: numbers come from the raw bits of a generator whose
    stream is fixed by numpy, and are turned into floats by exact operations.
    """

    def __init__(self) -> None:
        super().__init__()
        with torch.device("meta"):  # no weights are drawn yet, so that no global random stream is touched
            network = vgg16(weights=None, init_weights=False)
            network.classifier[-1] = nn.Linear(4096, 64)
        self.model = network.to_empty(device="cpu").eval().requires_grad_(False)
        bits = np.random.PCG64(_R64_SEED)
        for parameter in self.model.parameters():
            if parameter.ndim == 1:
                parameter.zero_()
            else:
                _fill_uniform(parameter, math.sqrt(6 / parameter[0].numel()), bits)

    def forward(self, images: Tensor) -> tuple[Tensor]:
        x = F.interpolate(images.float(), (64, 64), mode="bilinear", antialias=True, align_corners=False)
        return (self.model(x / 127.5 - 1),)


def _fill_uniform(parameter: Tensor, bound: float, bits: np.random.PCG64) -> None:
    """Fill with k · 2^-23 − 1, k uniform on 0..2^24−1 (exact in float32), times `bound`."""
    flat = parameter.view(-1).numpy()
    for start in range(0, len(flat), _CHUNK):
        part = flat[start : start + _CHUNK]
        words = bits.random_raw((len(part) + 1) // 2).astype("<u8").view("<u4")[: len(part)]
        part[:] = ((words >> 8).astype(np.float32) * np.float32(2**-23) - np.float32(1)) * np.float32(bound)


def build_features(name: str, weights_file: str | None, device: torch.device) -> FeatureExtractor:
    """The extractor of a name of `--features`, with weights from a file, or downloaded; on a device.

    The global random stream stays as it is.

    Raises:
        UserError: its weights can be had neither from disk nor from the network, or are others.
    """
    if name == "r64":
        return FeatureExtractor(name, "fixed", R64().to(device))
    url, build = _TRAINED[name]
    what, instead = f"the weights of --features {name}", "name a file by --feature_weights, or use r64"
    file = Path(weights_file) if weights_file else pretrained_file(url, what=what, instead=instead)
    with torch.random.fork_rng(devices=[]):  # constructors draw weights, which are then loaded over
        network = build(file)
    digits = sha256_of(file)[:8] + (f" by code {network.code}" if isinstance(network, _DINOv2) else "")
    return FeatureExtractor(name, digits, network.to(device))


def _loaded(extractor: type[FeatureExtractorBase], name: str, layer: str, file: Path) -> FeatureExtractorBase:
    """torch-fidelity's own constructor unpickles the file that it is given: hand it tensors only."""
    torch.save(load_state_dict(file), checked := io.BytesIO())
    checked.seek(0)
    try:
        network = extractor(name, [layer], feature_extractor_weights_path=checked)
    except RuntimeError as error:  # names or shapes differ
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{file} does not hold the weights of {name} ({reason} …): name another file") from None
    require_finite(network.state_dict(), file)
    return network


class _DINOv2(FeatureExtractorDinoV2):
    """torch-fidelity's DINOv2 with weights from a file; its own constructor only downloads.

    The code is the newest of its authors' main branch when it was first downloaded: `code` says which that is, by the
    first digits of a hash.
    """

    def __init__(self, file: Path) -> None:
        FeatureExtractorBase.__init__(self, "dinov2-vit-l-14", ["dinov2"])
        self.feature_extractor_internal_dtype = torch.float32
        os.environ["XFORMERS_DISABLED"] = "1"  # its attention is an option, and it warns where it is missing
        folder = Path(torch.hub.get_dir(), _DINOV2_CODE.replace("/", "_").replace(":", "_"))
        try:
            self.model = torch.hub.load(_DINOV2_CODE, "dinov2_vitl14", pretrained=False, verbose=False)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"the code of --features dinov2 cannot be downloaded ({error}): put "
                f"https://github.com/{_DINOV2_CODE.split(':')[0]} at {folder}, or use other --features"
            ) from None
        files = sorted(folder.rglob("*.py"))
        self.code = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:8]
        load_into(self.model, load_state_dict(file), file)
        self.eval().requires_grad_(False)


_inception = partial(_loaded, FeatureExtractorInceptionV3, "inception-v3-compat", "2048")
_vgg16 = partial(_loaded, FeatureExtractorVGG16, "vgg16", "fc2_relu")
_TRAINED: dict[str, tuple[str, Callable[[Path], nn.Module]]] = {  # address and maker of each that has trained weights
    "inception": (URL_INCEPTION_V3, _inception),
    "vgg16": (VGG16_Weights.IMAGENET1K_V1.url, _vgg16),
    "dinov2": ("https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth", _DINOv2),
}
