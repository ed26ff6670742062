"""Fixtures that tests of several packages share."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from emulated_cuda import emulated_cuda
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3


def folder_named_by(variable: str) -> Path:
    """The folder that an environment variable names; without it the test is skipped."""
    return Path(os.environ.get(variable) or pytest.skip(f"{variable} names no folder"))


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Reference data made by the paper authors' code."""
    return folder_named_by("GOLDEN_DIR")


@pytest.fixture(scope="session")
def images_dir() -> Path:
    """Real images, in `photos/` and `emoji/`."""
    return folder_named_by("IMAGES_DIR")


@pytest.fixture(scope="session")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of torch-fidelity's Inception-v3 in names and shapes, with random values."""
    file = tmp_path_factory.mktemp("inception") / "inception.pth"
    torch.save({}, file)
    torch.manual_seed(0)
    with patch.object(FeatureExtractorInceptionV3, "load_state_dict"):  # it keeps its random start
        network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(file))
    torch.save(network.state_dict(), file)
    return file


@pytest.fixture
def no_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """--compile on needs no C++ compiler: for tests in which it generates no code."""
    monkeypatch.setattr("utils.machine.compiling._missing", lambda _: None)


@pytest.fixture
def cuda(no_code: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The device "cuda" is an emulated one."""
    with emulated_cuda(monkeypatch):
        yield


@pytest.fixture
def terminal() -> Iterator[None]:
    """A closed terminal sends SIGHUP, which is ignored where the tests run under nohup."""
    former = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, former)


@pytest.fixture(scope="session")
def artefacts() -> Path:
    """Folder for pictures of what tests saw, to be looked at; kept after the tests, and replaced by the next ones."""
    folder = Path(__file__).parents[1] / "build" / "test_artefacts"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
