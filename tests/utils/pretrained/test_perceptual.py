"""LPIPS from each kind of weights file, and its place outside the model's state."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lpips
import pytest
import torch
from small_models import vqgan
from torch import Tensor

from hparams.errors import UserError
from hparams.settings.models import VQGANSettings
from models.vqgan.vqgan import PerceptualLoss
from utils.pretrained.perceptual import LPIPSEmbedding, build_perceptual, load_lpips, untrained_lpips
from utils.pretrained.weights import NoWeightsError

CPU = torch.device("cpu")


def images(seed: int) -> Tensor:
    return torch.rand((2, 3, 32, 32), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def network() -> lpips.LPIPS:
    """LPIPS with a random trunk: the test's own stand-in for the trained one."""
    torch.manual_seed(0)
    return untrained_lpips("vgg").eval()


@pytest.fixture(scope="module")
def expected(network: lpips.LPIPS) -> Tensor:
    with torch.no_grad():
        return network(images(0), images(1))


def torchvision_names(network: lpips.LPIPS) -> dict[str, Tensor]:
    """The trunk as torchvision's VGG16 file has it, with a classifier that has no use here."""
    trunk = {"features." + name.split(".", 1)[1]: value for name, value in network.net.state_dict().items()}
    return trunk | {"classifier.0.weight": torch.zeros(3)}


def build(path: Path | None, **settings: Any) -> PerceptualLoss:
    file = str(path) if path else None
    loss = build_perceptual(VQGANSettings(perceptual_weights_file=file, **settings), CPU)
    assert loss is not None
    return loss


@pytest.fixture(scope="module")
def trunk(network: lpips.LPIPS, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "vgg.pth"
    torch.save(torchvision_names(network), path)
    return path


@pytest.fixture(scope="module")
def loss(trunk: Path) -> PerceptualLoss:
    return build(trunk)


def test_weights_come_from_each_kind_of_file(
    network: lpips.LPIPS, loss: PerceptualLoss, expected: Tensor, tmp_path: Path
) -> None:
    """Torchvision's, the lpips package's, and a published VQGAN."""
    whole, file = network.state_dict(), tmp_path / "weights.pth"
    vqgan = {f"perceptual.{name}": value for name, value in whole.items()} | {"ae.encoder": torch.zeros(2)}
    distances = [loss(images(0), images(1))]
    for content in (whole, vqgan):
        torch.save(content, file)
        distances.append(build(file)(images(0), images(1)))
    for each in distances:
        assert each.shape == (2, 1, 1, 1)
        assert torch.equal(each, expected)
    assert (distances[0] > 1e-3).all()
    assert (loss(images(0), images(0)) == 0).all()


def test_the_range_that_lpips_expects_by_flag(network: lpips.LPIPS, expected: Tensor, trunk: Path) -> None:
    loss = build(trunk, lpips_input="symmetric")
    with torch.no_grad():
        corrected = network(2 * images(0) - 1, 2 * images(1) - 1)
    torch.testing.assert_close(loss(images(0), images(1)), corrected)
    assert ((corrected - expected).abs() > 0.1 * expected).all()


def test_gradients_reach_the_images_and_not_the_network(loss: Any) -> None:
    y = images(1).requires_grad_()
    loss(images(0), y).sum().backward()
    assert y.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in loss._network.parameters())


def test_it_is_no_part_of_the_model_that_holds_it(loss: PerceptualLoss, expected: Tensor) -> None:
    """And copies of the model share it."""
    model = vqgan(perceptual=loss)  # in training mode: dropout stands before its linear layers
    assert {name.split(".")[0] for name in model.state_dict()} == {"ae", "disc"}
    assert len(list(model.parameters())) == len(list(model.ae.parameters())) + len(list(model.disc.parameters()))
    assert torch.equal(model.perceptual(images(0), images(1)), expected)
    assert copy.deepcopy(model).perceptual is loss


@pytest.mark.parametrize("settings", [VQGANSettings(perceptual="none"), VQGANSettings(perceptual_weight=0.0)])
def test_without_a_perceptual_term_nothing_is_loaded(settings: VQGANSettings) -> None:
    assert build_perceptual(settings, CPU) is None


@pytest.mark.parametrize("content", [{"features.0.weight": torch.zeros(2)}, {"weight": torch.zeros(2)}, {}])
def test_other_files_are_refused(tmp_path: Path, content: dict[str, Tensor]) -> None:
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"weights\.pth does not fit"):
        build(tmp_path / "weights.pth")


def test_without_a_network_a_file_at_the_named_place_is_used(trunk: Path, expected: Tensor, offline: Path) -> None:
    file = offline / "checkpoints/vgg16-397923af.pth"
    with pytest.raises(UserError) as refusal:
        build(None)
    for part in (str(file), "--perceptual_weights_file", "--perceptual none"):
        assert part in str(refusal.value)
    file.write_bytes(trunk.read_bytes())
    assert torch.equal(build(None)(images(0), images(1)), expected)
    file.write_bytes(b"half a download")
    with pytest.raises(UserError, match=r"vgg16-397923af\.pth"):
        build(None)


# --- vectors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("net", "side"), [("alex", 45), ("vgg", 32), ("squeeze", 32)])
def test_squared_distances_of_vectors_are_lpips(net: str, side: int, tmp_path: Path) -> None:
    network = untrained_lpips(net).eval()
    torch.save(torchvision_names(network), tmp_path / "trunk.pth")
    embed = LPIPSEmbedding(load_lpips(net, str(tmp_path / "trunk.pth")), CPU)
    x, y = torch.rand((2, 4, 3, side, side), generator=torch.Generator().manual_seed(1))
    y[0] = x[0]
    with torch.no_grad():
        expected = network(x, y, normalize=True).flatten()
    assert expected[1:].min() > 0.01
    torch.testing.assert_close((embed(x) - embed(y)).square().sum(1), expected, rtol=0, atol=1e-5)


def test_negative_heads_make_no_distance(network: lpips.LPIPS) -> None:
    changed = copy.deepcopy(network)
    changed.lin2.model[-1].weight.data[0, 0] = -1
    with pytest.raises(UserError, match="negative"):
        LPIPSEmbedding(changed, CPU)


@pytest.mark.parametrize(("net", "file"), [("alex", "alexnet-owt-7be5be79.pth"), ("squeeze", "squeezenet1_1")])
def test_each_trunk_has_its_own_file(offline: Path, net: str, file: str) -> None:
    with pytest.raises(NoWeightsError, match=file) as refusal:
        load_lpips(net, None)
    assert "https://" in str(refusal.value)


def test_building_it_draws_nothing_from_the_global_stream() -> None:
    """Else a model's first weights would depend on whether it has a perceptual loss."""
    before = torch.get_rng_state()
    untrained_lpips("alex")
    assert torch.equal(torch.get_rng_state(), before)
