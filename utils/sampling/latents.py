"""The codes of a whole data set, computed once: memory-mapped small integers, keyed by what made them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import torch

from hparams.settings.stages import PriorStage
from models.vqgan.autoencoder import VQAutoEncoder
from models.vqgan.quantizers import id_counts, perplexity
from utils.data.bad_images import Report, SharedReport
from utils.data.batches import eval_batches
from utils.data.datasets import ImageData
from utils.machine.distributed import ALONE, Ranks
from utils.machine.evaluation import evaluating
from utils.machine.progress import Progress, say
from utils.machine.signals import ending_politely
from utils.runs.growing_array import growing_array, made_array
from utils.runs.run_folder import RunFolder
from utils.runs.shared_batches import in_order, own_indices

_ROWS = 4096  # images whose codes are counted at a time


def latents_key(autoencoder: VQAutoEncoder, data: ImageData, flip: bool) -> str:
    """Hash of what determines the codes: encoder and quantiser weights, images, image size, flipping."""
    digest = hashlib.sha256(f"latents 1\0{data.fingerprint}\0{data.img_size}\0{flip}".encode())
    for part in (autoencoder.encoder, autoencoder.quantize):
        for name, value in part.state_dict().items():
            digest.update(f"{name}{list(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:24]


def cached_latents(
    folder: Path,
    autoencoder: VQAutoEncoder,
    data: ImageData,
    *,
    flip: bool,
    batch_size: int,
    num_workers: int,
    say: Callable[[str], None],
    quiet: bool = False,
    bad: Report | None = None,
    check: Callable[[], None] = lambda: None,
    ranks: Ranks = ALONE,
    otherwise: Path | None = None,
    warn: Callable[[str], None] = say,
) -> np.ndarray:
    """Codes of every image, in order: a read-only memory map [n,N], uint8 where K ≤ 256, else uint16 (or int32).

    With `flip` the codes of the flipped images follow, [2n,N]. The file appears when it is complete, with its checksum;
    a damaged one is made again. An interrupted encoding goes on where it stopped, also one that `check`, called after
    each batch, interrupts by an exception. They are kept in the folder `otherwise` where `folder` cannot be written.
    `say` takes what is done, `warn` what is wrong; `quiet` hides the progress. Encoding is done in float32, on the
    autoencoder's device. Images that cannot be read are reported to `bad`, by codes that were there already too. Of
    several `ranks`, each encodes its share, and the first writes.
    """

    def make(path: Path) -> None:
        say(f"encoding {len(data)} images{' and their mirror images' if flip else ''} into {path}")
        _encode(path, autoencoder, data, flip, batch_size, num_workers, say, quiet, bad, check, ranks, warn)

    path = folder / f"{latents_key(autoencoder, data, flip)}.npy"
    ids, unreadable = made_array(path, make, ranks, otherwise=otherwise, warn=warn)
    if bad and unreadable:
        bad(unreadable, len(data))
    return ids


def ids_dtype(codebook_size: int) -> np.dtype:
    """The smallest type for codes, of those that every library reads."""
    return np.min_scalar_type(codebook_size - 1) if codebook_size <= 2**16 else np.dtype(np.int32)


def _encode(
    path: Path,
    autoencoder: VQAutoEncoder,
    data: ImageData,
    flip: bool,
    batch_size: int,
    num_workers: int,
    say: Callable[[str], None],
    quiet: bool,
    bad: Report | None,
    check: Callable[[], None],
    ranks: Ranks,
    warn: Callable[[str], None],
) -> None:
    h, w = autoencoder.latent_size
    n, places, dtype = len(data), h * w, ids_dtype(autoencoder.quantize.size)
    turns = (False, True) if flip else (False,)
    device = next(autoencoder.parameters()).device
    with (
        evaluating(autoencoder),
        ending_politely(ranks) as stop_if_asked,
        growing_array(path, (n * len(turns), places), dtype, warn) if ranks.first else nullcontext() as codes,
    ):
        done, report = ranks.from_first(lambda: codes.done if codes else 0), SharedReport(bad, ranks)
        mine = own_indices(range(done, n), batch_size, ranks)
        encode = partial(autoencoder.encode, check_range=False)
        batches = (
            images.to(device).float() / 255
            for images in eval_batches(data, batch_size, num_workers, indices=mine, bad=report)
        )
        own = ([encode(images.flip(-1) if turn else images) for turn in turns] for images in batches)
        none = [torch.empty((0, places), dtype=torch.int64, device=device)] * len(turns)
        with Progress("encoding", n, "image", done=done, quiet=quiet, say=say) as progress:
            for parts in in_order(own, n - done, batch_size, none, ranks):
                report.exchange()
                size = len(parts[0])
                if codes:
                    for turn, part in zip(turns, parts, strict=True):
                        codes.write(turn * n + done, part.cpu().numpy())
                    codes.bad.update(report.found)
                    codes.advance(size)
                done += size
                progress.update(size)
                check()
                stop_if_asked()


def code_statistics(ids: torch.Tensor, codebook_size: int) -> dict[str, float]:
    """What a prior has to beat on codes ids [n,N], n ≥ 1, in bits per token, and the share of the codebook in use.

    Uniform guessing costs log2 K; the frequencies of single codes, pooled over places, cost their marginal entropy.
    """
    counts = torch.stack([id_counts(part.long(), codebook_size) for part in ids.split(_ROWS)]).sum(0)
    return {
        "log2_codebook_size": math.log2(codebook_size),
        "marginal_entropy_bits_per_token": math.log2(perplexity(counts).item()),
        "codebook_used": (counts > 0).double().mean().item(),
    }


def codes_in_use(codes: np.ndarray, codebook_size: int) -> dict[str, float]:
    """Share of the codebook that codes [n,N] use, and their perplexity, between 1 and K."""
    counts = np.zeros(codebook_size, np.int64)
    for start in range(0, len(codes), _ROWS):
        counts += np.bincount(codes[start : start + _ROWS].ravel(), minlength=codebook_size)
    return {
        "codebook_used": float((counts > 0).mean()),
        "codebook_perplexity": perplexity(torch.from_numpy(counts)).item(),
    }


def resident_codes(
    settings: PriorStage,
    autoencoder: VQAutoEncoder,
    data: ImageData,
    ranks: Ranks = ALONE,
    *,
    flip: bool,
    say: Callable[[str], None],
    warn: Callable[[str], None],
    bad: Report | None = None,
    check: Callable[[], None] = lambda: None,
) -> torch.Tensor:
    """Codes of a data set, by the cache in the autoencoder's folder, on its device: [n,N], or [2n,N] with `flip`.

    Where that folder cannot be written, the run's own holds the cache. On the device they stay for the whole run, as
    uint8 where K ≤ 256, else int16 (K ≤ 32768; 1.5 GB for the 3 million bedrooms) or int32. The arguments are those of
    `cached_latents`.
    """
    codes = cached_latents(
        RunFolder(str(settings.source.ae_load_dir)).latents,
        autoencoder,
        data,
        flip=flip,
        batch_size=settings.run.batch_size,
        num_workers=settings.run.num_workers,
        say=say,
        quiet=settings.run.quiet,
        bad=bad,
        check=check,
        ranks=ranks,
        otherwise=RunFolder(settings.run.log_dir).latents,
        warn=warn,
    )
    largest = autoencoder.quantize.size - 1
    dtype = next(dtype for dtype in (np.uint8, np.int16, np.int32) if largest <= np.iinfo(dtype).max)
    return torch.from_numpy(codes.astype(dtype)).to(next(autoencoder.parameters()).device)
