"""R64: features of a randomly initialised VGG16 (Naeem et al. 2020, arXiv 2002.09797, section 4)."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torchvision.models import vgg16

_CHUNK = 1 << 22


class R64(FeatureExtractorBase):
    """Images uint8 [n,3,H,W] → one tensor [n,64] float32, in a tuple, as torch-fidelity's extractors give it.

    Images are resized to 64×64 (bilinear, antialiased) and scaled to [−1,1]. The network is torchvision's VGG16 with a
    last layer of 4096 → 64. Weights are uniform within ±sqrt(6 / fan-in) (He et al. 2015), drawn from `SEED`, and
    biases are zero. They are the same to the bit on every machine: numbers come from the raw bits of a generator whose
    stream is fixed by numpy, and are turned into floats by exact operations.
    """

    INPUT_IMAGE_SIZE = 64
    SEED = 64

    def __init__(self, name: str = "r64", features_list: tuple[str, ...] | list[str] = ("64",), **_: object) -> None:
        super().__init__(name, features_list)
        with torch.device("meta"):  # no weights are drawn yet, so that no global random stream is touched
            network = vgg16(weights=None, init_weights=False)
            network.classifier[-1] = nn.Linear(4096, 64)
        self.model = network.to_empty(device="cpu").eval().requires_grad_(False)
        bits = np.random.PCG64(self.SEED)
        for parameter in self.model.parameters():
            if parameter.ndim == 1:
                parameter.zero_()
            else:
                _fill_uniform(parameter, math.sqrt(6 / parameter[0].numel()), bits)

    def forward(self, images: Tensor) -> tuple[Tensor]:
        size = (self.INPUT_IMAGE_SIZE, self.INPUT_IMAGE_SIZE)
        x = F.interpolate(images.float(), size, mode="bilinear", antialias=True, align_corners=False)
        return (self.model(x / 127.5 - 1),)

    @staticmethod
    def get_provided_features_list() -> tuple[str]:
        return ("64",)

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "64"

    @staticmethod
    def can_be_compiled() -> bool:
        return True

    @staticmethod
    def get_dummy_input_for_compile() -> Tensor:
        return torch.zeros((1, 3, 64, 64), dtype=torch.uint8)


def _fill_uniform(parameter: Tensor, bound: float, bits: np.random.PCG64) -> None:
    """Fill with k · 2^-23 − 1, k uniform on 0..2^24−1 (exact in float32), times `bound`."""
    flat = parameter.view(-1).numpy()
    for start in range(0, len(flat), _CHUNK):
        part = flat[start : start + _CHUNK]
        words = bits.random_raw((len(part) + 1) // 2).astype("<u8").view("<u4")[: len(part)]
        part[:] = ((words >> 8).astype(np.float32) * np.float32(2**-23) - np.float32(1)) * np.float32(bound)
