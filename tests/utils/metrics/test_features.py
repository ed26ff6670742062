"""Extractors from files that the tests make: right names and shapes, random values. R64's weights never change."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
import torch_fidelity
from torch import Tensor
from torchvision.models import vgg16

from hparams.errors import UserError
from utils.machine.files import sha256_of
from utils.metrics.features import R64, FeatureExtractor, build_features

CPU = torch.device("cpu")
DINOV2 = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(3, 5)

    def forward(self, x):
        return self.head(x.mean((2, 3)))

def dinov2_vitl14(pretrained=True):
    assert not pretrained
    return Net()
"""


def build(name: str, weights: Path | None = None) -> FeatureExtractor:
    return build_features(name, str(weights) if weights else None, CPU)


def pictures(n: int = 3, side: int = 20) -> Tensor:
    return torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_inception_from_a_file(inception_file: Path, offline: Path) -> None:
    """What torch-fidelity itself makes of the same file; the global random stream stays where it was."""
    before = torch.get_rng_state()
    extractor = build("inception", inception_file)
    assert torch.equal(torch.get_rng_state(), before)
    theirs = torch_fidelity.utils.create_feature_extractor(
        "inception-v3-compat", ["2048"], cuda=False, feature_extractor_weights_path=str(inception_file), verbose=False
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):  # features stay float32 under --amp
        got = extractor(pictures())
    assert (got.shape, got.dtype) == ((3, 2048), torch.float32)
    assert torch.equal(got, theirs(pictures())[0])
    cached = offline / "checkpoints/weights-inception-2015-12-05-6726825d.pth"
    cached.parent.mkdir(parents=True)
    cached.symlink_to(inception_file)
    assert build("inception").weights == extractor.weights == sha256_of(inception_file)[:8]


def test_vgg16_from_a_file(tmp_path: Path) -> None:
    with torch.device("meta"):
        shapes = vgg16(weights=None).state_dict()
    # One stored number per tensor, so that the file takes no room.
    values = {name: torch.full((), 0.01 if value.ndim > 1 else 0.1) for name, value in shapes.items()}
    torch.save({name: value.expand(shapes[name].shape) for name, value in values.items()}, tmp_path / "vgg16.pth")
    extractor = build("vgg16", tmp_path / "vgg16.pth")
    assert extractor(pictures()).shape == (3, 4096)
    assert (extractor(pictures()) > 0).all()
    assert extractor.network.model.features[0].weight.unique().tolist() == pytest.approx([0.01])


def test_dinov2_from_torchs_cache(tmp_path: Path, offline: Path) -> None:
    head, file, repository = torch.nn.Linear(3, 5), tmp_path / "dinov2.pth", offline / "facebookresearch_dinov2_main"
    torch.save({f"head.{name}": value for name, value in head.state_dict().items()}, file)
    with pytest.raises(UserError, match="code of --features dinov2") as caught:
        build("dinov2", file)
    assert "https://github.com/facebookresearch/dinov2" in str(caught.value)
    assert str(repository) in str(caught.value)
    repository.mkdir(parents=True)
    (repository / "hubconf.py").write_text(DINOV2)
    extractor = build("dinov2", file)
    white = torch.full((2, 3, 20, 20), 255, dtype=torch.uint8)
    normalised = (1 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    assert torch.allclose(extractor(white), head(normalised).expand(2, -1), atol=1e-5)
    (repository / "other.py").write_text("# newer code\n")
    newer = build("dinov2", file)
    assert newer.weights != extractor.weights
    assert newer.weights.split()[0] == extractor.weights.split()[0] == sha256_of(file)[:8]

    torch.save({"head.weight": torch.zeros(5, 3)}, file)
    with pytest.raises(UserError, match=r"dinov2\.pth does not fit .*missing: head\.bias"):
        build("dinov2", file)


@pytest.mark.parametrize(
    ("name", "file", "address"),
    [
        ("inception", "weights-inception-2015-12-05-6726825d.pth", "https://github.com/toshas/torch-fidelity"),
        ("vgg16", "vgg16-397923af.pth", "https://download.pytorch.org/"),
        ("dinov2", "dinov2_vitl14_pretrain.pth", "https://dl.fbaipublicfiles.com/"),
    ],
)
def test_weights_that_cannot_be_had(offline: Path, name: str, file: str, address: str) -> None:
    """The line says which file, from which address, goes where."""
    with pytest.raises(UserError) as caught:
        build(name)
    for part in (f"--features {name}", "--feature_weights", str(offline / "checkpoints" / file), address):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"fc.weight": torch.zeros(2, 2)}, "does not hold the weights of inception-v3-compat"),
        ({"weight": Path("x")}, "holds more than tensors"),  # to load it would run code
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: dict[str, object], says: str) -> None:
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(UserError, match=rf"other\.pth {says}"):
        build("inception", tmp_path / "other.pth")


def test_what_is_not_finite_is_refused(inception_file: Path, tmp_path: Path) -> None:
    weights, file = torch.load(inception_file, weights_only=True), tmp_path / "weights.pth"
    weights["Conv2d_1a_3x3.conv.weight"][0, 0, 0, 0] = torch.nan
    torch.save(weights, file)
    with pytest.raises(UserError, match=r"weights\.pth holds .* not finite \(in Conv2d_1a_3x3.conv.weight\)"):
        build("inception", file)
    for name in weights:
        if name.endswith("conv.weight"):
            weights[name].fill_(1e30)  # finite, unlike what comes of them
    torch.save(weights, file)
    with pytest.raises(UserError, match="--features inception gives values that are not finite"):
        build("inception", file)(pictures())


# --- R64 ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def r64() -> FeatureExtractor:
    before = torch.get_rng_state()
    made = build("r64")
    assert torch.equal(torch.get_rng_state(), before)
    assert isinstance(made.network, R64)
    return made


def test_the_weights_are_these(r64: FeatureExtractor) -> None:
    digest = hashlib.sha256()
    for name, value in r64.network.model.state_dict().items():
        digest.update(f"{name} {list(value.shape)} {value.dtype}\n".encode())
        digest.update(value.numpy().astype("<f4").tobytes())
    assert digest.hexdigest() == "fc72eb60833e14e2b2ecfa188762202fe78dfab613285742cfe0ae5c3b6c854d"


def test_the_layers_are_vgg16s(r64: FeatureExtractor) -> None:
    network = vgg16(weights=None, num_classes=64).eval()
    network.load_state_dict(r64.network.model.state_dict())
    images = pictures(2, 64)
    got, expected = r64(images), network(images / 127.5 - 1)
    assert (got.shape, got.dtype) == ((2, 64), torch.float32)
    assert torch.allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_images_of_any_size_are_resized_without_aliasing(r64: FeatureExtractor) -> None:
    """A fine checkerboard looks grey."""
    checkers = torch.zeros((1, 3, 256, 256), dtype=torch.uint8)
    checkers[..., ::2, ::2] = checkers[..., 1::2, 1::2] = 255
    grey = torch.full((1, 3, 64, 64), 127, dtype=torch.uint8)
    assert (r64(checkers) - r64(grey)).norm() < 0.05 * r64(pictures(2, 64)).norm()
    with pytest.raises(ValueError, match="uint8"):
        r64(torch.zeros((1, 3, 8, 8)))
