"""LPIPS from each kind of weights file, and its place outside the model's state."""

from __future__ import annotations

import copy
from pathlib import Path

import lpips
import pytest
import torch
from small_models import autoencoder as small_autoencoder
from torch import Tensor

from hparams.errors import UserError
from hparams.settings.models import VQGANSettings
from models.vqgan.networks import Discriminator
from models.vqgan.vqgan import VQGAN, PerceptualLoss
from utils.metrics.neighbours import NearestNeighbours
from utils.pretrained.perceptual import LPIPS, LPIPSEmbedding, build_perceptual, load_lpips, untrained_lpips
from utils.pretrained.weights import NoWeightsError

CPU = torch.device("cpu")


def images(seed: int) -> Tensor:
    return torch.rand((2, 3, 32, 32), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def network() -> lpips.LPIPS:
    """LPIPS with a random trunk: the test's own stand-in for the trained one."""
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="deprecated"):
        return lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False).eval()


@pytest.fixture(scope="module")
def expected(network: lpips.LPIPS) -> Tensor:
    with torch.no_grad():
        return network(images(0), images(1))


def torchvision_names(network: lpips.LPIPS) -> dict[str, Tensor]:
    """The trunk as torchvision's VGG16 file has it, with a classifier that has no use here."""
    trunk = {"features." + name.split(".", 1)[1]: value for name, value in network.net.state_dict().items()}
    return trunk | {"classifier.0.weight": torch.zeros(3)}


def write(network: lpips.LPIPS, layout: str, path: Path) -> None:
    content = {
        "torchvision": torchvision_names(network),
        "lpips": network.state_dict(),
        "published": {f"perceptual.{name}": value for name, value in network.state_dict().items()}
        | {"ae.encoder.blocks.0.weight": torch.zeros(2)},
    }[layout]
    torch.save(content, path)


def build(path: Path | None) -> PerceptualLoss:
    loss = build_perceptual(VQGANSettings(perceptual_weights_file=str(path) if path else None), CPU)
    assert loss is not None
    return loss


@pytest.fixture(scope="module")
def loss(network: lpips.LPIPS, tmp_path_factory: pytest.TempPathFactory) -> PerceptualLoss:
    path = tmp_path_factory.mktemp("weights") / "vgg.pth"
    write(network, "torchvision", path)
    return build(path)


@pytest.mark.parametrize("layout", ["torchvision", "lpips", "published"])
def test_weights_come_from_each_kind_of_file(
    network: lpips.LPIPS, expected: Tensor, tmp_path: Path, layout: str
) -> None:
    write(network, layout, tmp_path / "weights.pth")
    torch.manual_seed(1)
    distances = build(tmp_path / "weights.pth")(images(0), images(1))
    assert distances.shape == (2, 1, 1, 1)
    assert torch.equal(distances, expected)


def test_the_range_that_lpips_expects_by_flag(network: lpips.LPIPS, expected: Tensor, tmp_path: Path) -> None:
    write(network, "torchvision", tmp_path / "vgg.pth")
    settings = VQGANSettings(perceptual_weights_file=str(tmp_path / "vgg.pth"), lpips_input="symmetric")
    loss = build_perceptual(settings, CPU)
    assert loss is not None
    with torch.no_grad():
        corrected = network(2 * images(0) - 1, 2 * images(1) - 1)
    torch.testing.assert_close(loss(images(0), images(1)), corrected)
    assert ((corrected - expected).abs() > 0.1 * expected).all()


def test_distances_are_positive_and_vanish_for_equal_images(loss: PerceptualLoss) -> None:
    assert (loss(images(0), images(1)) > 1e-3).all()
    assert (loss(images(0), images(0)) == 0).all()


def test_gradients_reach_the_images_and_not_the_network(loss: PerceptualLoss) -> None:
    y = images(1).requires_grad_()
    loss(images(0), y).sum().backward()
    assert y.grad is not None
    assert y.grad.abs().sum() > 0
    assert isinstance(loss, LPIPS)
    assert not any(parameter.requires_grad for parameter in loss._network.parameters())


def vqgan(loss: PerceptualLoss) -> VQGAN:
    autoencoder = small_autoencoder(img_size=32, ch_mult=(1,), attn_resolutions=())
    return VQGAN(
        autoencoder,
        Discriminator(3, 8, 1),
        perceptual=loss,
        perceptual_weight=1.0,
        disc_start_step=0,
        disc_weight_max=1.0,
        diff_aug=False,
    )


def test_it_is_no_part_of_the_model_that_holds_it(loss: PerceptualLoss, expected: Tensor) -> None:
    model = vqgan(loss).train()  # dropout stands before its linear layers
    assert {name.split(".")[0] for name in model.state_dict()} == {"ae", "disc"}
    assert len(list(model.parameters())) == len(list(model.ae.parameters())) + len(list(model.disc.parameters()))
    assert model.perceptual is not None
    assert torch.equal(model.perceptual(images(0), images(1)), expected)


def test_copies_of_the_model_share_it(loss: PerceptualLoss) -> None:
    assert copy.deepcopy(vqgan(loss)).perceptual is loss


@pytest.mark.parametrize("settings", [VQGANSettings(perceptual="none"), VQGANSettings(perceptual_weight=0.0)])
def test_without_a_perceptual_term_nothing_is_loaded(settings: VQGANSettings) -> None:
    assert build_perceptual(settings, CPU) is None


@pytest.mark.parametrize("content", [{"features.0.weight": torch.zeros(2)}, {"weight": torch.zeros(2)}, {}])
def test_other_files_are_refused(tmp_path: Path, content: dict[str, Tensor]) -> None:
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"weights\.pth does not fit"):
        build(tmp_path / "weights.pth")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No network, and an empty cache: the folder where torch would look."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    return tmp_path / "checkpoints"


def test_without_a_network_the_error_names_file_and_flags(offline: Path) -> None:
    with pytest.raises(UserError) as refusal:
        build(None)
    message = str(refusal.value)
    assert "\n" not in message
    for part in (str(offline / "vgg16-397923af.pth"), "--perceptual_weights_file", "--perceptual none"):
        assert part in message


def test_a_file_at_the_named_place_is_used(network: lpips.LPIPS, expected: Tensor, offline: Path) -> None:
    offline.mkdir()
    write(network, "torchvision", offline / "vgg16-397923af.pth")
    assert torch.equal(build(None)(images(0), images(1)), expected)


def test_a_damaged_file_at_the_named_place_is_refused(offline: Path) -> None:
    offline.mkdir()
    (offline / "vgg16-397923af.pth").write_bytes(b"half a download")
    with pytest.raises(UserError, match=r"vgg16-397923af\.pth"):
        build(None)


# --- vectors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("net", "side"), [("alex", 45), ("vgg", 32), ("squeeze", 32)])
def test_squared_distances_of_vectors_are_lpips(net: str, side: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="deprecated"):
        network = lpips.LPIPS(net=net, pnet_rand=True, verbose=False).eval()
    trunk = {"features." + name.split(".", 1)[1]: value for name, value in network.net.state_dict().items()}
    torch.save(trunk, tmp_path / "trunk.pth")
    embed = LPIPSEmbedding(load_lpips(net, str(tmp_path / "trunk.pth"), what="", instead=""), CPU)

    generator = torch.Generator().manual_seed(1)
    x, y = torch.rand((2, 4, 3, side, side), generator=generator)
    y[0] = x[0]
    with torch.no_grad():
        expected = network(x, y, normalize=True).flatten()
    assert expected[1:].min() > 0.01
    vectors = embed(x), embed(y)
    torch.testing.assert_close((vectors[0] - vectors[1]).square().sum(1), expected, rtol=0, atol=1e-5)
    found = NearestNeighbours(vectors[0], 4)
    found.merge(*found.nearest(vectors[1], 0))
    for i in range(4):  # by one product
        assert found.distances[i, found.indices[i] == i].item() == pytest.approx(expected[i].item(), abs=1e-4)


def test_negative_heads_make_no_distance(network: lpips.LPIPS) -> None:
    changed = copy.deepcopy(network)
    changed.lin2.model[-1].weight.data[0, 0] = -1
    with pytest.raises(UserError, match="negative"):
        LPIPSEmbedding(changed, CPU)


@pytest.mark.parametrize(("net", "file"), [("alex", "alexnet-owt-7be5be79.pth"), ("squeeze", "squeezenet1_1")])
def test_each_trunk_has_its_own_file(offline: Path, net: str, file: str) -> None:
    with pytest.raises(NoWeightsError, match=file) as refusal:
        load_lpips(net, None, what="the weights of LPIPS", instead="use another")
    assert "https://" in str(refusal.value)


@pytest.mark.parametrize("net", ["vgg", "alex"])
def test_building_it_draws_nothing_from_the_global_stream(net: str) -> None:
    """Else a model's first weights would depend on whether it has a perceptual loss."""
    torch.manual_seed(0)
    expected = torch.rand(4)
    torch.manual_seed(0)
    untrained_lpips(net)
    assert torch.equal(torch.rand(4), expected)
