"""Images through an autoencoder and back: their features, and how close they are one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hparams.checks import LPIPS_MIN_SIDES
from hparams.settings.experiments import ReconstructionExperiment
from models.vqgan.autoencoder import VQAutoEncoder
from models.vqgan.similarity import SSIM_WINDOW, psnr, ssim
from utils.data.bad_images import Report
from utils.data.batches import eval_batches
from utils.data.datasets import ImageData
from utils.data.pictures import comparison_rows, image_grid, save_png, to_uint8
from utils.machine.devices import pick_amp_dtype, without_tf32
from utils.machine.distributed import Ranks
from utils.machine.files import content_key, sha256_of
from utils.machine.progress import say
from utils.metrics.features import FeatureExtractor
from utils.pretrained.perceptual import LPIPS, load_lpips
from utils.pretrained.weights import NoWeightsError
from utils.runs.growing_array import made_array
from utils.runs.run_folder import RunFolder
from utils.runs.shared_batches import fill_array
from utils.sampling.latents import cached_latents
from utils.sampling.sampling import decode_images

QUALITIES = ("psnr_db", "ssim", "lpips")
_ROWS = 32  # originals in the picture of them and their reconstructions


class Reconstructions:
    """The first images of a split and their reconstructions, by 8 bits each; what is computed is kept in `folder`."""

    def __init__(
        self,
        settings: ReconstructionExperiment,
        folder: RunFolder,
        autoencoder: VQAutoEncoder,
        ae_file: Path,
        data: ImageData,
        extractor: FeatureExtractor,
        lpips: LPIPS | None,
        bad: Report,
        ranks: Ranks,
    ) -> None:
        self._settings = settings
        self._folder = folder
        self._autoencoder = autoencoder
        self._ae_file = ae_file
        self._data = data
        self._extractor = extractor
        self._lpips = lpips
        self._bad = bad
        self._ranks = ranks
        run = settings.run
        self._amp_dtype = pick_amp_dtype(extractor.device, run.amp, run.amp_dtype)

    def codes(self) -> np.ndarray:
        """[n,N], from the cache in the autoencoder's run folder, or in this run's where that cannot be written."""
        run = self._settings.run
        return cached_latents(
            RunFolder(str(self._settings.source.ae_load_dir)).latents,
            self._autoencoder,
            self._data,
            flip=False,
            batch_size=run.batch_size,
            num_workers=run.num_workers,
            say=say if not run.quiet else lambda _: None,
            quiet=run.quiet,
            bad=self._bad,
            ranks=self._ranks,
            otherwise=self._folder.latents,
        )

    def compute(self, codes: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
        """Features [n,d] of the reconstructions, and means over the images of what compares them one by one."""
        extractor, lpips = self._extractor, self._lpips and self._lpips.weights
        made_from = (self._data.fingerprint, sha256_of(self._ae_file), self._amp_dtype, lpips)
        key = content_key("reconstructions 5", *made_from, extractor.name, extractor.weights)
        path = self._folder.features / f"{key}.npy"
        rows, _ = made_array(path, lambda file: self._fill(file, codes), self._ranks)
        features, quality = np.split(rows, [extractor.width], axis=1)
        means = quality.mean(0, dtype=np.float64)
        return features, {name: float(mean) for name, mean in zip(QUALITIES, means, strict=True) if not np.isnan(mean)}

    def picture(self, codes: np.ndarray) -> tuple[Path, np.ndarray]:
        """Write a grid of the first originals over their reconstructions; its file, and itself, uint8 [3,H',W']."""
        originals = next(eval_batches(self._data, min(_ROWS, len(self._data)), 0, bad=self._bad))
        pairs, columns = comparison_rows(originals, self._decode(codes[: len(originals)]))
        path = self._folder.images / "originals_over_reconstructions.png"
        grid = image_grid(pairs, columns)
        save_png(path, grid)
        return path, grid

    def _fill(self, path: Path, codes: np.ndarray) -> None:
        """Rows of a reconstruction's features and, behind them, its qualities."""
        run, extractor, n = self._settings.run, self._extractor, len(self._data)
        width = extractor.width + len(QUALITIES)

        def rows(indices: np.ndarray, report: Report) -> Iterator[Tensor]:
            done = 0
            for batch in eval_batches(self._data, run.batch_size, run.num_workers, indices=indices, bad=report):
                images = self._decode(codes[indices[done : done + len(batch)]])
                done += len(batch)
                yield torch.cat([extractor(images), self._compare(batch.to(images.device), images)], dim=1)

        fill_array(
            path,
            n,
            np.empty(width, np.float32),
            rows,
            batch_size=run.batch_size,
            none=torch.empty((0, width), device=extractor.device),
            what=f"{extractor.name} of reconstructions",
            quiet=run.quiet,
            bad=self._bad,
            ranks=self._ranks,
        )

    def _decode(self, codes: np.ndarray) -> Tensor:
        ids = torch.from_numpy(codes.astype(np.int64)).to(self._extractor.device)
        return to_uint8(decode_images(self._autoencoder, ids, self._amp_dtype))

    @torch.no_grad()
    @without_tf32()
    def _compare(self, originals: Tensor, images: Tensor) -> Tensor:
        """uint8 [B,3,S,S], twice → [B, QUALITIES] float32; NaN for what cannot be said."""
        x, y = originals.float() / 255, images.float() / 255
        unknown = x.new_full((len(x),), torch.nan)
        return torch.stack(
            [
                psnr(x, y),
                ssim(x, y) if x.shape[-1] >= SSIM_WINDOW else unknown,
                self._lpips(x, y).flatten() if self._lpips else unknown,
            ],
            dim=1,
        )


def lpips_if_there(
    settings: ReconstructionExperiment, device: torch.device, say: Callable[[str], None]
) -> LPIPS | None:
    """LPIPS as the settings name it, or None after a line that says why not.

    Raises:
        UserError: a file was named, and is not usable.
    """
    reconstruction, side = settings.reconstruction, settings.autoencoder.img_size
    net = reconstruction.lpips_net
    if side < LPIPS_MIN_SIDES[net]:
        say(f"no LPIPS: --lpips_net {net} needs images of at least {LPIPS_MIN_SIDES[net]} pixels")
        return None
    try:
        network = load_lpips(
            net,
            reconstruction.lpips_weights,
            what=f"the weights of --lpips_net {net}",
            instead="name a file by --lpips_weights",
        )
    except NoWeightsError as error:
        say(f"no LPIPS: {error}")
        return None
    return LPIPS(network, device, symmetric=True)
