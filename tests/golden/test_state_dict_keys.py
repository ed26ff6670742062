"""Names, shapes and types of the full-size models' state dicts, as published."""

import json
from pathlib import Path
from typing import Any

import lpips
import pytest
import torch
from torch import nn

from hparams.resolve import resolve
from hparams.settings.stages import PriorStage, VQGANStage
from utils.pretrained.building import build_prior, build_vqgan

VQGAN_ENTRY = "vqgan (nearest, churches/bedrooms/ffhq)"
DATASETS = ["churches", "bedrooms", "ffhq", "custom"]


@pytest.fixture(scope="module")
def published(golden_dir: Path) -> dict[str, dict[str, Any]]:
    return json.loads((golden_dir / "state_dict_keys.json").read_text())


def described(module: nn.Module) -> dict[str, Any]:
    state = module.state_dict()
    return {name: [list(value.shape), str(value.dtype).removeprefix("torch.")] for name, value in state.items()}


def vqgan(quantizer: str, dataset: str = "churches") -> nn.Module:
    flags = {"dataset": dataset, "custom_dataset_path": "photographs", "quantizer": quantizer}
    settings = resolve(VQGANStage, flags)
    with torch.device("meta"):
        return build_vqgan(settings.autoencoder, settings.vqgan, perceptual=None)


@pytest.mark.parametrize("dataset", DATASETS)
def test_vqgan(published: dict[str, dict[str, Any]], dataset: str) -> None:
    expected = {name: value for name, value in published[VQGAN_ENTRY].items() if not name.startswith("perceptual.")}
    own = described(vqgan("nearest", dataset))
    assert own == expected
    assert list(own) == list(expected)  # the order gives the optimisers' moments to their parameters


def test_gumbel_quantiser(published: dict[str, dict[str, Any]]) -> None:
    own = {name: value for name, value in described(vqgan("gumbel")).items() if name.startswith("ae.quantize.")}
    assert own == published["vqgan gumbel: quantizer only"]


@pytest.mark.parametrize("entry", ["absorbing (churches/bedrooms/ffhq)", "autoregressive"])
@pytest.mark.parametrize("dataset", DATASETS)
def test_priors(published: dict[str, dict[str, Any]], entry: str, dataset: str) -> None:
    flags = {"dataset": dataset, "custom_dataset_path": "photographs", "ae_load_dir": "vqgan"}
    settings = resolve(PriorStage, flags | {"sampler": entry.split()[0]})
    with torch.device("meta"):
        prior = build_prior(settings.prior, settings.autoencoder.codebook_size)
    assert described(prior) == published[entry]
    assert list(described(prior)) == list(published[entry])


@pytest.mark.filterwarnings("ignore::UserWarning:torchvision")
def test_perceptual_weights_of_a_published_checkpoint_fit_lpips(published: dict[str, dict[str, Any]]) -> None:
    own = described(lpips.LPIPS(net="vgg", pnet_rand=True, pretrained=False, verbose=False))
    perceptual = {name: value for name, value in published[VQGAN_ENTRY].items() if name.startswith("perceptual.")}
    assert {f"perceptual.{name}": value for name, value in own.items()} == perceptual
