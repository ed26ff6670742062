"""The codes of a whole data set, computed once, and kept under what made them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.vqgan.autoencoder import VQAutoEncoder
from models.vqgan.quantizers import id_counts, perplexity
from utils.data.bad_images import Report
from utils.data.batches import eval_batches
from utils.data.datasets import ImageData
from utils.machine.evaluation import evaluating
from utils.runs.job import Job
from utils.runs.shards import ROWS, Shards
from utils.sampling.drawing import ids_dtype

_ROWS = 4096  # images whose codes are counted at a time


def part_size(job: Job) -> int:
    """Rows of a part file: some `ROWS`, in whole batches."""
    return -(-ROWS // job.batch_size) * job.batch_size


def latents_key(autoencoder: VQAutoEncoder, data: ImageData, flip: bool) -> str:
    """Hash of what determines the codes: encoder and quantiser weights, images, image size, flipping."""
    digest = hashlib.sha256(f"latents 2\0{data.fingerprint}\0{data.img_size}\0{flip}".encode())
    for part in (autoencoder.encoder, autoencoder.quantize):
        for name, value in part.state_dict().items():
            digest.update(f"{name}{list(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:24]


def encoded(job: Job, autoencoder: VQAutoEncoder, data: ImageData, folder: Path, *, flip: bool = False) -> np.ndarray:
    """Codes of every image, in order: [n,N], uint8 where K ≤ 256, else uint16 (or int32).

    With `flip` the codes of the mirror images follow, [2n,N]. They are kept in `folder`, or in the job's own where that
    cannot be written. Encoding is done in float32.
    """
    turns = (False, True) if flip else (False,)
    height, width = autoencoder.latent_size
    like = np.empty((len(turns), height * width), ids_dtype(autoencoder.quantize.size))

    def encode(indices: np.ndarray, report: Report) -> Iterator[Tensor]:
        job.say(f"encoding {len(indices)} images{' and their mirror images' if flip else ''}")
        for images in eval_batches(data, job.batch_size, job.num_workers, indices=indices, bad=report):
            with evaluating(autoencoder):
                x = images.to(job.device).float() / 255
                ids = [autoencoder.encode(x.flip(-1) if turn else x, check_range=False) for turn in turns]
            yield torch.stack(ids, dim=1)

    key = latents_key(autoencoder, data, flip)
    shards = Shards(folder / key, job.folder.latents / key)
    codes = shards.fill(job, len(data), like, encode, what="encoding", size=part_size(job))[:]
    return codes.transpose(1, 0, 2).reshape(-1, like.shape[1])


def resident(codes: np.ndarray, codebook_size: int, device: torch.device) -> Tensor:
    """Codes [n,N] on a device for a whole run: uint8 where K ≤ 256, else int16 (K ≤ 32768) or int32.

    int16 takes 1.5 GB for the 3 million bedrooms.
    """
    dtype = next(dtype for dtype in (np.uint8, np.int16, np.int32) if codebook_size - 1 <= np.iinfo(dtype).max)
    return torch.from_numpy(codes.astype(dtype)).to(device)


def code_statistics(ids: Tensor | np.ndarray, codebook_size: int) -> dict[str, float]:
    """What a prior has to beat on codes ids [n,N], n ≥ 1, in bits per token, and the share of the codebook in use.

    Uniform guessing costs log2 K; the frequencies of single codes, pooled over places, cost their marginal entropy.
    """
    used = codes_in_use(ids, codebook_size)
    entropy = math.log2(used["codebook_perplexity"])
    bits = {"log2_codebook_size": math.log2(codebook_size), "marginal_entropy_bits_per_token": entropy}
    return {**bits, "codebook_used": used["codebook_used"]}


def codes_in_use(codes: Tensor | np.ndarray, codebook_size: int) -> dict[str, float]:
    """Share of the codebook that codes [n,N] use, and their perplexity, between 1 and K."""
    ids = torch.as_tensor(codes if isinstance(codes, Tensor) else codes.astype(np.int32))
    counts = torch.stack([id_counts(part.long(), codebook_size) for part in ids.split(_ROWS)]).sum(0)
    used = (counts > 0).double().mean().item()
    return {"codebook_used": used, "codebook_perplexity": perplexity(counts).item()}
