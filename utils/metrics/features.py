"""Features of images, for FID, KID and PRDC: torch-fidelity's networks and R64 behind one interface."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.feature_extractor_dinov2 import FeatureExtractorDinoV2
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3
from torch_fidelity.feature_extractor_vgg16 import FeatureExtractorVGG16
from torchvision.models import VGG16_Weights

from hparams.errors import UserError
from hparams.settings.metrics import FeatureSettings
from utils.machine.devices import without_tf32
from utils.machine.files import sha256_of
from utils.metrics.r64 import R64
from utils.pretrained.weights import pretrained_file
from utils.runs.checkpoints import load_into, load_state_dict, require_finite

DINOV2_CODE = "facebookresearch/dinov2:main"


@dataclass(frozen=True)
class FeatureExtractor:
    """A frozen network that turns images into features.

    Attributes:
        name: as `--features` has it.
        weights: which weights: the first digits of their file's SHA-256, or "fixed"; of DINOv2 also those of its code.
        network: torch-fidelity's kind of extractor, giving one kind of feature.
    """

    name: str
    weights: str
    network: FeatureExtractorBase

    @property
    def device(self) -> torch.device:
        """Where the images must be."""
        return next(self.network.parameters()).device

    @property
    def conditions(self) -> dict[str, str]:
        """Which features, for results."""
        return {"features": self.name, "feature_weights": self.weights}

    @cached_property
    def width(self) -> int:
        """d, numbers per image."""
        return self(torch.zeros((1, 3, 32, 32), dtype=torch.uint8, device=self.device)).shape[1]

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


def build_features(settings: FeatureSettings, device: torch.device) -> FeatureExtractor:
    """The extractor that the settings name, on a device. The global random stream stays as it is.

    Raises:
        UserError: its weights can be had neither from disk nor from the network, or are others.
    """
    name = settings.features
    if name == "r64":
        return FeatureExtractor(name, "fixed", R64().to(device))
    url, build = _TRAINED[name]
    file = (
        Path(settings.feature_weights)
        if settings.feature_weights
        else pretrained_file(
            url, what=f"the weights of --features {name}", instead="name a file by --feature_weights, or use r64"
        )
    )
    with torch.random.fork_rng(devices=[]):  # constructors draw weights, which are then loaded over
        network = build(file)
    weights = sha256_of(file)[:8] + (f" by code {network.code}" if isinstance(network, _DINOv2) else "")
    return FeatureExtractor(name, weights, network.to(device))


def _inception(file: Path) -> FeatureExtractorBase:
    return _loaded(FeatureExtractorInceptionV3, "inception-v3-compat", "2048", file)


def _vgg16(file: Path) -> FeatureExtractorBase:
    return _loaded(FeatureExtractorVGG16, "vgg16", "fc2_relu", file)


def _loaded(extractor: type[FeatureExtractorBase], name: str, layer: str, file: Path) -> FeatureExtractorBase:
    """torch-fidelity's own constructor unpickles the file that it is given: hand it tensors only."""
    checked = io.BytesIO()
    torch.save(load_state_dict(file), checked)
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
        folder = Path(torch.hub.get_dir(), DINOV2_CODE.replace("/", "_").replace(":", "_"))
        try:
            self.model = torch.hub.load(DINOV2_CODE, "dinov2_vitl14", pretrained=False, verbose=False)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"the code of --features dinov2 cannot be downloaded ({error}): put "
                f"https://github.com/{DINOV2_CODE.split(':')[0]} at {folder}, or use other --features"
            ) from None
        files = sorted(folder.rglob("*.py"))
        self.code = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:8]
        load_into(self.model, load_state_dict(file), file)
        self.eval().requires_grad_(False)


_TRAINED: dict[str, tuple[str, Callable[[Path], FeatureExtractorBase]]] = {
    "inception": (URL_INCEPTION_V3, _inception),
    "vgg16": (VGG16_Weights.IMAGENET1K_V1.url, _vgg16),
    "dinov2": ("https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth", _DINOv2),
}
