"""The order of the data, and loaders that follow it with any number of workers."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hparams.errors import RunError, UserError
from hparams.settings.data import DataSettings
from utils.data import batches
from utils.data.batch_order import BatchOrder
from utils.data.batches import eval_batches, stand_in, train_batches
from utils.data.datasets import ImageData, open_images
from utils.machine import signals
from utils.machine.signals import Signals, Stopped, heed_parent_alone


@pytest.mark.parametrize(("n", "batch_size"), [(30, 4), (32, 8), (5, 5), (7, 1)])
def test_an_epoch_sees_each_image_at_most_once(n: int, batch_size: int) -> None:
    order = BatchOrder(n, batch_size, seed=1)
    per_epoch = n // batch_size
    assert order.batches_per_epoch == per_epoch
    for epoch in range(3):
        seen = np.concatenate([order.indices(epoch * per_epoch + i) for i in range(per_epoch)])
        assert len(set(seen.tolist()) & set(range(n))) == len(seen) == per_epoch * batch_size


def test_epochs_and_seeds_differ() -> None:
    order = BatchOrder(10, 4, seed=0)
    assert {int(i) for step in range(20) for i in order.indices(step)} == set(range(10))
    first = BatchOrder(50, 50, seed=0)
    orders = [first.indices(0), first.indices(1), BatchOrder(50, 50, seed=1).indices(0)]
    assert len({o.tobytes() for o in orders}) == 3
    # Fewer images than a batch.
    assert sorted(np.bincount(BatchOrder(3, 8, seed=0).indices(5)).tolist()) == [2, 3, 3]


def test_a_step_has_the_same_batch_however_it_is_reached() -> None:
    straight, jumping = BatchOrder(23, 5, seed=7), BatchOrder(23, 5, seed=7)
    expected = [straight.indices(step) for step in range(40)]
    for step in (39, 0, 17, 4, 16, 38):
        np.testing.assert_array_equal(jumping.indices(step), expected[step])
        np.testing.assert_array_equal(BatchOrder(23, 5, seed=7).indices(step), expected[step])


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> ImageData:
    file = tmp_path_factory.mktemp("toys") / "datasets.yaml"
    return open_images(DataSettings("toy_churches", None, str(file), 30), split="train", img_size=8, hold_out=False)


def test_what_makes_no_order_is_refused(toys: ImageData) -> None:
    for arguments in ((0, 1, 0), (5, 0, 0), (5, 1, -1)):
        with pytest.raises(ValueError, match="need"):
            BatchOrder(*arguments)
    with pytest.raises(ValueError, match="step"):
        BatchOrder(5, 2, 0).indices(-1)
    with pytest.raises(ValueError, match="31"):
        train_batches(toys, BatchOrder(31, 4, seed=0), 0, num_workers=0)
    with pytest.raises(ValueError, match="batch_size"):
        eval_batches(toys, 0, num_workers=0)


@pytest.fixture(scope="module")
def expected(toys: ImageData) -> torch.Tensor:
    """The batches of 4 images of the first 20 steps with seed 2."""
    order = BatchOrder(len(toys), 4, seed=2)
    return torch.stack([torch.from_numpy(np.stack([toys[int(i)] for i in order.indices(k)])) for k in range(20)])


def batches_of(toys: ImageData, start: int, workers: int) -> Iterator[torch.Tensor]:
    return train_batches(toys, BatchOrder(len(toys), 4, seed=2), start, workers)


def take(loading: Iterator[torch.Tensor], n: int) -> torch.Tensor:
    return torch.stack(list(islice(loading, n)))


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_follow_the_order_from_any_step(workers: int, toys: ImageData, expected: torch.Tensor) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    for start in (0, 9):
        resumed = take(batches_of(toys, start, workers), 20 - start)
        assert resumed.dtype == torch.uint8
        assert torch.equal(resumed, expected[start:])
    assert torch.equal(torch.get_rng_state(), before)


def test_spawned_workers(toys: ImageData, expected: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """They do the same, and leave signals to the run, whose handlers they do not inherit: on macOS."""
    monkeypatch.setattr(batches, "START_METHOD", "spawn")
    before, ours = set(multiprocessing.active_children()), batches_of(toys, 9, 1)
    first = next(ours)
    (worker,) = set(multiprocessing.active_children()) - before
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        os.kill(worker.pid, number)
    assert torch.equal(torch.cat([first[None], take(ours, 10)]), expected[9:])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("batch_size", "start", "sizes"), [(8, 0, [8] * 3 + [6]), (8, 16, [8, 6]), (15, 0, [15] * 2)])
def test_eval_batches_are_whole(batch_size: int, start: int, sizes: list[int], workers: int, toys: ImageData) -> None:
    loaded = list(eval_batches(toys, batch_size, num_workers=workers, indices=range(start, len(toys))))
    assert [len(batch) for batch in loaded] == sizes
    expected = np.stack([toys[i] for i in range(start, len(toys))])
    np.testing.assert_array_equal(torch.cat(loaded).numpy(), expected)
    assert list(eval_batches(toys, batch_size, num_workers=workers, indices=[])) == []


def test_a_schedulers_sigterm_waits_for_workers_that_just_start(
    toys: ImageData, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    """Their parent, which gets one too, is to save first. More workers than processors are no warning."""

    def hit(worker: int) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        heed_parent_alone(worker)

    monkeypatch.setattr(batches, "heed_parent_alone", hit)
    ours, theirs = (torch.cat(list(eval_batches(toys, 4, workers))) for workers in ((os.cpu_count() or 1) + 1, 0))
    assert torch.equal(ours, theirs)
    assert not [warning for warning in recwarn if "worker" in str(warning.message)]
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_where_the_system_names_no_sender_a_worker_goes_on_for_a_while_and_then_ends(
    toys: ImageData, expected: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on macOS. It starts by fork here, to have the name deleted too."""
    monkeypatch.delattr(signal, "sigwaitinfo")
    for seconds in (3600.0, 0.0):
        monkeypatch.setattr(signals, "SECONDS_AFTER_SIGTERM", seconds)
        before, ours = set(multiprocessing.active_children()), batches_of(toys, 0, 1)
        first = next(ours)
        (worker,) = set(multiprocessing.active_children()) - before
        os.kill(worker.pid, signal.SIGTERM)
        if seconds:
            assert torch.equal(torch.cat([first[None], take(ours, 8)]), expected[:9])
        else:
            worker.join(60)
            assert worker.exitcode == 0
        ours.close()
        worker.join(60)


def test_stand_ins_are_spread_over_the_images() -> None:
    assert [stand_in(i, 0, 1000) for i in range(20)] == list(range(20))
    for others in ({stand_in(i, 1, 1000) for i in range(20)}, {stand_in(7, attempt, 1000) for attempt in range(20)}):
        assert len(others) > 15
        assert others <= set(range(1000))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_is_one_line_from_a_worker_too(workers: int, tmp_path: Path) -> None:
    for i in range(8):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{i}.png")
    (tmp_path / "5.png").write_bytes(b"no image")
    data = open_images(DataSettings("custom", str(tmp_path)), split="all", img_size=8, hold_out=False)
    with pytest.raises(UserError, match=r"\A.*5\.png.*\Z"):  # to keep the error would keep the workers, for 10 s
        list(eval_batches(data, 2, num_workers=workers))


class Unsteady:
    """Twelve images; reading number 5 fails while the file `away` is there. The data are in reach unless told."""

    def __init__(self, away: Path, in_reach: bool = True) -> None:
        self.away, self.reach = away, in_reach
        away.touch()

    def __len__(self) -> int:
        return 12

    def __getitem__(self, i: int) -> np.ndarray:
        if i == 5 and self.away.exists():
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return np.full((3, 4, 4), i, np.uint8)

    def source(self, i: int) -> str:
        return f"image {i}"

    def in_reach(self, i: int) -> bool:
        if not self.reach:
            self.away.unlink(missing_ok=True)  # the disk is back, and is looked at once more
        return self.reach


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No attempt is waited for."""
    for name in ("_POLL_S", "BETWEEN_ATTEMPTS_S", "UNREADABLE_S"):
        monkeypatch.setattr(batches, name, 0.01)
    return monkeypatch


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("workers", [0, 2])
def test_failed_reads_are_tried_again(workers: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = torch.cat(list(eval_batches(Unsteady(tmp_path / "away", in_reach=False), 4, num_workers=workers)))
    assert torch.equal(loaded[:, 0, 0, 0], torch.arange(12, dtype=torch.uint8))
    assert "image 5 cannot be read (Stale file handle): trying again" in capsys.readouterr().err

    found: dict[str, str] = {}  # one image that it never gives is a bad one
    data = Unsteady(tmp_path / "away")
    loaded = torch.cat(list(eval_batches(data, 4, workers, bad=lambda bad, _: found.update(bad))))
    assert list(found) == ["image 5"]
    assert loaded[5, 0, 0, 0] == next(j for j in (stand_in(5, k, 12) for k in range(1, 99)) if j != 5)


def test_data_that_stay_out_of_reach_end_the_wait(tmp_path: Path, hasty: pytest.MonkeyPatch) -> None:
    hasty.setattr(batches, "OUT_OF_REACH_S", 0.01)
    hasty.setattr(Unsteady, "in_reach", lambda *_: False)
    with pytest.raises(RunError, match=r"image 5 cannot be read .*: bring the data back; then --resume"):
        list(eval_batches(Unsteady(tmp_path / "away"), 4, 0))


class Hanging(Unsteady):
    """A worker that reads number 5 stands still, and its process is deaf to all but SIGKILL."""

    def __getitem__(self, i: int) -> np.ndarray:
        if i == 5:
            os.kill(os.getpid(), signal.SIGSTOP)
        return super().__getitem__(i)


def test_a_hanging_worker_is_waited_for_until_a_signal_or_for_long(tmp_path: Path, hasty: pytest.MonkeyPatch) -> None:
    before = multiprocessing.active_children()
    with Signals():
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Stopped, match="SIGTERM"):
            next(eval_batches(Hanging(tmp_path / "away"), 12, num_workers=1))
    hasty.setattr(batches, "LONGEST_WAIT_S", 0.1)
    with pytest.raises(RunError, match=r"no batch of images came within .* hang"):
        next(eval_batches(Hanging(tmp_path / "away"), 12, num_workers=1))
    for worker in set(multiprocessing.active_children()) - set(before):
        worker.join(60)
        assert not worker.is_alive()
