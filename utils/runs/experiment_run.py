"""The run folder of an experiment, and the processes that share its work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from hparams.saved import save
from hparams.settings.stages import RunSettings, Stage
from utils.data.bad_images import STANDS_IN, BadImages, Report
from utils.data.datasets import ImageData
from utils.machine.distributed import Ranks, joined
from utils.machine.files import sole_writer
from utils.machine.progress import say
from utils.runs.run_folder import RunFolder
from utils.runs.same_settings import require_same_images, require_same_settings


@contextmanager
def experiment_run(
    settings: Stage, device: torch.device, *splits: ImageData, fake_images: ImageData | None = None
) -> Iterator[Ranks]:
    """A block that the processes which torchrun started run together; without torchrun there is one.

    All share the work; the first alone writes, and nothing else may write to the run folder meanwhile. Long work of the
    first one only belongs behind the block, where the others need not wait for it. splits: what it reads of the data
    set. fake_images: what it reads of --fake_images_path.

    Raises:
        UserError: another run writes to the folder, or the processes have different settings or images.
    """
    run, folder = settings.run, RunFolder(settings.run.log_dir)
    with joined(device, backend=run.dist_backend, timeout_s=run.dist_timeout) as ranks:
        require_same_settings(settings, ranks)
        require_same_images(f"--dataset {run.dataset}", splits, ranks)
        require_same_images("--fake_images_path", [fake_images] if fake_images else [], ranks)
        with sole_writer(folder.path) if ranks.first else nullcontext():
            if ranks.first:
                save(settings, folder.hparams)
            yield ranks


def list_bad_images(run: RunSettings, ranks: Ranks, until_then: str = STANDS_IN) -> Report:
    """Takes, on every process, images that cannot be read; the run folder lists them, up to the share allowed.

    until_then: what becomes of them, for the line that says so.
    """
    file = RunFolder(run.log_dir).bad_images
    return BadImages(file, run.max_bad_images, say, keep=False, writes=ranks.first, until_then=until_then).report
