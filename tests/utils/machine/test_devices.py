"""What is said to be computed in float32 is not rounded to TF32, and torch's settings stay those of the caller."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from utils.machine.devices import pick_amp_dtype, without_tf32
from utils.metrics.features import FeatureExtractor
from utils.metrics.neighbours import Embedding, nearest_images
from utils.metrics.prdc import compute_prdc
from utils.pretrained.perceptual import LPIPSEmbedding, untrained_lpips
from utils.runs.job import Job

CPU = torch.device("cpu")
Seen = list[tuple[str, str]]


def precisions() -> tuple[str, str]:
    """Of convolutions and of products on CUDA; there need not be any."""
    return torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision


@pytest.fixture(params=["highest", "high"], autouse=True)
def callers(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever the caller chose for products."""
    torch.set_float32_matmul_precision(request.param)
    before = precisions()
    assert before[0] == "tf32"  # torch's own choice, without which there would be nothing to do
    yield
    assert precisions() == before
    assert torch.get_float32_matmul_precision() == request.param
    assert torch.backends.cudnn.allow_tf32  # torch's older names, which it refuses where the two disagree
    assert torch.backends.cuda.matmul.allow_tf32 == (request.param == "high")
    torch.set_float32_matmul_precision("highest")


def test_settings_are_put_back_after_an_error() -> None:
    @without_tf32()
    def interrupted() -> None:
        with without_tf32():
            assert precisions() == ("ieee", "ieee")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()


class Watched(nn.Module):
    """Notes the settings under which it is called."""

    def __init__(self, seen: Seen) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        self._seen = seen

    def forward(self, images: Tensor) -> tuple[Tensor]:
        self._seen.append(precisions())
        return (images.float().mean((2, 3)),)


def features(seen: Seen, job: Job) -> None:
    FeatureExtractor("watched", "fixed", Watched(seen))(torch.zeros((2, 3, 8, 8), dtype=torch.uint8))


def lpips_embedding(seen: Seen, job: Job) -> None:
    network = untrained_lpips("alex")
    network.net.register_forward_hook(lambda *_: seen.append(precisions()))
    LPIPSEmbedding(network, CPU)(torch.zeros((1, 3, 32, 32)))


def prdc(seen: Seen, job: Job) -> None:
    points = torch.arange(8.0)[:, None]
    compute_prdc(points, points + 0.1, 2, tick=lambda: seen.append(precisions()))


def neighbours(seen: Seen, job: Job) -> None:
    class Images(list[np.ndarray]):
        fingerprint = "images"

    watched = Embedding("colours", "fixed", lambda images: Watched(seen)(images)[0])
    images = Images(np.zeros((4, 3, 8, 8), np.uint8))
    nearest_images(job, watched, torch.zeros((1, 3, 8, 8), dtype=torch.uint8), images, 4, 2)
    assert len(seen) == 2
    del seen[0]  # of the samples alone; embeddings see to it themselves


@pytest.mark.parametrize("work", [features, lpips_embedding, prdc, neighbours])
def test_float32_is_float32(work: Callable[[Seen, Job], None], job: Job) -> None:
    seen: Seen = []
    work(seen, job)
    assert set(seen) == {("ieee", "ieee")}


def test_the_type_is_one_that_the_device_has_whatever_the_current_one_has(monkeypatch: pytest.MonkeyPatch) -> None:
    current = [0]  # the devices whose blocks are open

    @contextmanager
    def device(chosen: torch.device) -> Iterator[None]:
        yield current.append(chosen.index)
        current.pop()

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: current[-1] == 1)
    found = [pick_amp_dtype(torch.device("cuda", index), True, "auto") for index in (0, 1)]
    assert found == [torch.float16, torch.bfloat16]


@pytest.mark.parametrize(
    ("has", "may_use", "bfloat16"),  # AVX2: as ATEN_CPU_CAPABILITY has it
    [
        *[("avx512_bf16", "AVX512", True), ("avx512_bf16", "AVX2", False)],
        *[("arm_bf16", "DEFAULT", True), ("avx512_f", "AVX512", False)],
    ],
)
def test_a_cpu_takes_the_bfloat16_that_pytorch_may_use(has: str, may_use: str, bfloat16: bool, monkeypatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": False, has: True})
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: may_use)
    assert pick_amp_dtype(CPU, True, "auto") == (torch.bfloat16 if bfloat16 else None)
