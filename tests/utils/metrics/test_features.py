"""Extractors from files that the tests make: right names and shapes, random values."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch
import torch_fidelity
from torch import Tensor
from torchvision.models import vgg16

from hparams.errors import UserError
from hparams.settings.metrics import FeatureSettings
from utils.machine.files import sha256_of
from utils.metrics.features import FeatureExtractor, build_features

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
    return build_features(FeatureSettings(features=name, feature_weights=str(weights) if weights else None), CPU)


def pictures(n: int = 3) -> Tensor:
    return torch.randint(0, 256, (n, 3, 20, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Torch's cache in an empty folder, and no network."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch/hub"


def test_inception_from_a_file(inception_file: Path) -> None:
    """What torch-fidelity itself makes of the same file; the global random stream stays where it was."""
    before = torch.get_rng_state()
    extractor = build("inception", inception_file)
    assert torch.equal(torch.get_rng_state(), before)
    assert extractor.weights == sha256_of(inception_file)[:8]
    theirs = torch_fidelity.utils.create_feature_extractor(
        "inception-v3-compat", ["2048"], cuda=False, feature_extractor_weights_path=str(inception_file), verbose=False
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):  # features stay float32 under --amp
        got = extractor(pictures())
    assert got.shape == (3, 2048)
    assert got.dtype == torch.float32
    assert torch.equal(got, theirs(pictures())[0])


def test_inception_from_torchs_cache(inception_file: Path, offline: Path) -> None:
    file = offline / "checkpoints/weights-inception-2015-12-05-6726825d.pth"
    file.parent.mkdir(parents=True)
    file.symlink_to(inception_file)
    assert build("inception").weights == sha256_of(inception_file)[:8]


def test_vgg16_from_a_file(tmp_path: Path) -> None:
    with torch.device("meta"):
        shapes = vgg16(weights=None).state_dict()
    # One stored number per tensor, so that the file takes no room.
    weights = {
        name: torch.full((), 0.01 if value.ndim > 1 else 0.1).expand(value.shape) for name, value in shapes.items()
    }
    torch.save(weights, tmp_path / "vgg16.pth")
    extractor = build("vgg16", tmp_path / "vgg16.pth")
    features = extractor(pictures())
    assert features.shape == (3, 4096)
    assert (features > 0).all()
    assert extractor.network.model.features[0].weight.unique().tolist() == pytest.approx([0.01])


def test_dinov2_from_torchs_cache(tmp_path: Path, offline: Path) -> None:
    repository = offline / "facebookresearch_dinov2_main"
    repository.mkdir(parents=True)
    (repository / "hubconf.py").write_text(DINOV2)
    head = torch.nn.Linear(3, 5)
    file = tmp_path / "dinov2.pth"
    torch.save({f"head.{name}": value for name, value in head.state_dict().items()}, file)
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
    ("name", "says"),
    [
        ("inception", ["weights-inception-2015-12-05-6726825d.pth", "https://github.com/toshas/torch-fidelity"]),
        ("vgg16", ["vgg16-397923af.pth", "https://download.pytorch.org/"]),
        ("dinov2", ["dinov2_vitl14_pretrain.pth", "https://dl.fbaipublicfiles.com/"]),
    ],
)
def test_weights_that_cannot_be_had(offline: Path, name: str, says: list[str]) -> None:
    """The line says which file, from which address, goes where."""
    with pytest.raises(UserError) as caught:
        build(name)
    line = str(caught.value)
    for part in (f"--features {name}", "--feature_weights", str(offline / "checkpoints" / says[0]), *says):
        assert part in line, line


def test_code_that_cannot_be_had(tmp_path: Path, offline: Path) -> None:
    torch.save({"head.weight": torch.zeros(5, 3)}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="code of --features dinov2") as caught:
        build("dinov2", tmp_path / "w.pth")
    assert "https://github.com/facebookresearch/dinov2" in str(caught.value)
    assert str(offline / "facebookresearch_dinov2_main") in str(caught.value)


def test_other_weights_are_refused(tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.zeros(2, 2)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"other\.pth does not hold the weights of inception-v3-compat"):
        build("inception", tmp_path / "other.pth")


def test_a_file_that_runs_code_is_refused(tmp_path: Path) -> None:
    torch.save({"weight": Path("x")}, tmp_path / "hostile.pth")
    with pytest.raises(UserError, match=r"hostile\.pth holds more than tensors"):
        build("inception", tmp_path / "hostile.pth")


def test_features_that_are_not_finite(inception_file: Path, tmp_path: Path) -> None:
    weights = torch.load(inception_file, weights_only=True)
    for name in weights:
        if name.endswith("conv.weight"):
            weights[name].fill_(1e30)  # finite, unlike what comes of them
    torch.save(weights, tmp_path / "large.pth")
    with pytest.raises(UserError, match="--features inception gives values that are not finite"):
        build("inception", tmp_path / "large.pth")(pictures())


def test_weights_that_are_not_finite_are_refused(inception_file: Path, tmp_path: Path) -> None:
    weights = torch.load(inception_file, weights_only=True)
    weights["Conv2d_1a_3x3.conv.weight"][0, 0, 0, 0] = torch.nan
    torch.save(weights, tmp_path / "nan.pth")
    with pytest.raises(UserError, match=r"nan\.pth holds values that are not finite \(in Conv2d_1a_3x3.conv.weight\)"):
        build("inception", tmp_path / "nan.pth")


def test_images_are_uint8() -> None:
    with pytest.raises(ValueError, match="uint8"):
        build("r64")(torch.zeros((1, 3, 8, 8)))
