"""Reference data: small random models of the paper authors' code, what they compute, and how to compare with it."""

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hparams.resolve import resolve
from hparams.settings.stages import PriorStage, VQGANStage
from models.prior.prior import Prior
from models.vqgan.vqgan import VQGAN
from utils.pretrained.building import build_prior, build_vqgan
from utils.runs.checkpoints import load_into, load_state_dict
from utils.runs.run_folder import RunFolder


class Reference:
    """One reference model: its settings, its checkpoints loaded as the scripts do, and what it should compute."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        hparams: dict[str, Any] = json.loads((folder / "hparams.json").read_text())
        hparams.pop("batch")
        self.hparams = {name: tuple(value) if isinstance(value, list) else value for name, value in hparams.items()}

    @cached_property
    def expected(self) -> dict[str, Tensor]:
        return self.arrays("expected.npz")

    @cached_property
    def training(self) -> dict[str, Any]:
        return self.arrays("training.npz")

    def arrays(self, name: str) -> dict[str, Any]:
        """The entries of a file of the folder: tensors, and lists of names."""
        with np.load(self.folder / name, allow_pickle=False) as file:
            return {name: torch.from_numpy(a) if a.dtype.kind != "U" else a.tolist() for name, a in file.items()}

    def vqgan_settings(self, **changes: Any) -> VQGANStage:
        """Stage 1 as the shell would set it with the values of hparams.json as flags."""
        own = {name: value for name, value in self.hparams.items() if not name.startswith(("bert_", "block", "total"))}
        flags = {"dataset": "churches", "perceptual": "none", "disc_start_step": 0}
        return resolve(VQGANStage, flags | own | changes)

    def prior_settings(self, sampler: str, **changes: Any) -> PriorStage:
        """Stage 2, likewise."""
        own = {name: value for name, value in self.hparams.items() if name not in ("ndf", "disc_layers")}
        flags = {"dataset": "churches", "sampler": sampler, "ae_load_dir": "vqgan"}
        return resolve(PriorStage, flags | own | changes)

    def vqgan(self, **changes: Any) -> VQGAN:
        settings = self.vqgan_settings(**changes)
        vqgan = build_vqgan(settings.autoencoder, settings.vqgan, perceptual=None)
        self._load(vqgan, "vqgan", 10)
        return vqgan.eval()

    def prior(self, kind: str) -> Prior:
        settings = self.prior_settings(kind)
        prior = build_prior(settings.prior, settings.autoencoder.codebook_size)
        self._load(prior, kind, 20)
        return prior.eval()

    def check(self, values: Mapping[str, Tensor | float]) -> None:
        """Compare with expected.npz: exactly for integers, else 1e-4 relative."""
        for name, value in values.items():
            assert_near(torch.as_tensor(value).detach(), self.expected[name], name, 1e-4)

    def _load(self, module: torch.nn.Module, kind: str, step: int) -> None:
        path = RunFolder(kind, self.folder).pick_model_file(kind, step, ema=True)
        load_into(module, load_state_dict(path), path)


def assert_near(value: Tensor, expected: Tensor, name: str, tolerance: float) -> None:
    """Equal, for integers; else near by the norm of the whole, and place by place.

    A place may differ by `tolerance` of its own size or of the typical size of the entry, whichever is more.
    """
    assert value.shape == expected.shape, name
    if not expected.is_floating_point():
        assert torch.equal(value, expected), name
        return
    value, expected = value.double(), expected.double()
    assert (value - expected).norm() <= tolerance * expected.norm(), name
    typical = expected.square().mean().sqrt().item()
    near = {"rtol": tolerance, "atol": tolerance * typical, "msg": lambda text: f"{name}: {text}"}
    torch.testing.assert_close(value, expected, **near)


@pytest.fixture(scope="session", params=["nearest_small", "gumbel_small"])
def reference(request: pytest.FixtureRequest, golden_dir: Path) -> Reference:
    return Reference(golden_dir / request.param)


@pytest.fixture(scope="session")
def nearest_reference(golden_dir: Path) -> Reference:
    return Reference(golden_dir / "nearest_small")
