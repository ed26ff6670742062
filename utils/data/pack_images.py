"""Pack a folder of images at training resolution, so that large files are decoded once and not in every epoch.

The result is one LMDB folder, which takes the place of the original: as --custom_dataset_path, or in datasets.yaml.
Training sees exactly the same pixels, in the same order, with the same images held out. In place of an image that
cannot be read another one is packed; they are listed in a file beside the result.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from io import BytesIO
from pathlib import Path

import numpy as np

from hparams.cli import parse
from hparams.errors import UserError
from hparams.presets import FOLDERS
from hparams.script import require_open_files, run_script
from hparams.settings.data import DataSettings
from hparams.settings.tools import Pack
from utils.data.bad_images import BadImages
from utils.data.batches import eval_batches
from utils.data.datasets import open_images
from utils.data.lmdb_images import write_lmdb
from utils.data.pictures import pil_image
from utils.machine.progress import Progress, say

EXAMPLE = "python -m utils.data.pack_images --dataset ffhq --img_size 256 --out data/ffhq_256 --num_workers 8"


def encode_lossless(pixels: np.ndarray) -> bytes:
    """uint8 [3,H,W] as a PNG, compressed a little: more would be slower to write, and hardly smaller."""
    buffer = BytesIO()
    pil_image(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def pack_images(folder: Path, images: Iterable[np.ndarray]) -> None:
    """Write images uint8 [3,H,W] into an LMDB folder, numbered in their order; whole or not at all."""
    write_lmdb(folder, ((b"%09d" % number, encode_lossless(pixels)) for number, pixels in enumerate(images)))


def main() -> None:
    settings = parse(Pack, prog="python -m utils.data.pack_images", description=__doc__, example=EXAMPLE).pack
    if not settings.dataset:
        raise UserError(f"--dataset is required: one of {', '.join(FOLDERS)}")
    if not settings.out:
        raise UserError("--out is required: the folder to write, which must not exist")
    require_open_files(settings.num_workers)
    out = Path(settings.out)
    if out.exists():
        raise UserError(f"--out {out}: exists already: name a new folder, or remove it")
    which = DataSettings(settings.dataset, settings.custom_dataset_path, settings.datasets_file)
    data = open_images(which, split="all", img_size=settings.img_size, hold_out=False)
    if settings.dry_run:
        print(f"{len(data)} images would be packed in {out}")
        return
    bad = BadImages(Path(f"{out}.bad_images.txt"), settings.max_bad_images, say, keep=False)
    with Progress("packing", len(data), "image") as progress:

        def images() -> Iterator[np.ndarray]:
            for batch in eval_batches(data, 64, settings.num_workers, bad=bad.report):
                yield from batch.numpy()
                progress.update(len(batch))

        pack_images(out, images())
    print(f"{len(data)} images in {out}")


if __name__ == "__main__":
    run_script(main)
