"""Pack a folder of images at training resolution, so that large files are decoded once and not in every epoch.

The result is one LMDB folder, which takes the place of the original: as --custom_dataset_path, or in datasets.yaml.
Training sees exactly the same pixels, in the same order, with the same images held out. In place of an image that
cannot be read another one is packed; they are listed in a file beside the result.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from hparams.cli import run_script
from hparams.errors import UserError
from utils.bad_images import BadImages
from utils.batches import eval_batches
from utils.datasets import open_images
from utils.lmdb_images import write_lmdb
from utils.progress import Progress, say

EXAMPLE = "python -m utils.pack_images --dataset ffhq --img_size 256 --out data/ffhq_256 --num_workers 8"
BATCH = 64


def encode_lossless(pixels: np.ndarray) -> bytes:
    """uint8 [3,H,W] as a PNG, compressed a little: more would be slower to write, and hardly smaller."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def pack_images(folder: Path, images: Iterable[np.ndarray]) -> None:
    """Write images uint8 [3,H,W] into an LMDB folder, numbered in their order; whole or not at all."""

    def items() -> Iterator[tuple[bytes, bytes]]:
        for number, pixels in enumerate(images):
            yield f"{number:09d}".encode(), encode_lossless(pixels)

    write_lmdb(folder, items())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m utils.pack_images", description=__doc__, epilog=EXAMPLE)
    parser.add_argument("--dataset", choices=("ffhq", "custom"), required=True, help="data set that lies in a folder")
    parser.add_argument("--custom_dataset_path", metavar="FOLDER", help="folder of images, for --dataset custom")
    parser.add_argument("--datasets_file", metavar="FILE", default="datasets.yaml", help="where each data set lies")
    parser.add_argument("--img_size", metavar="PIXELS", type=int, default=256, help="side to resize to (default: 256)")
    parser.add_argument("--num_workers", metavar="N", type=int, default=4, help="processes that read (default: 4)")
    parser.add_argument(
        "--max_bad_images",
        metavar="SHARE",
        type=float,
        default=0.01,
        help="share of the images that may be unreadable (default: 0.01)",
    )
    parser.add_argument("--out", metavar="FOLDER", type=Path, required=True, help="folder to write; must not exist")
    args = parser.parse_args()
    if args.out.exists():
        raise UserError(f"--out {args.out}: exists already: name a new folder, or remove it")
    if args.img_size < 1 or args.num_workers < 0:
        raise UserError("--img_size must be at least 1, and --num_workers at least 0")
    if not 0 <= args.max_bad_images < 1:
        raise UserError(f"--max_bad_images {args.max_bad_images:g}: must be at least 0 and below 1")

    data = open_images(
        args.dataset,
        split="all",
        img_size=args.img_size,
        custom_dataset_path=args.custom_dataset_path,
        datasets_file=args.datasets_file,
        hold_out=False,
    )
    bad = BadImages(Path(f"{args.out}.bad_images.txt"), args.max_bad_images, say, keep=False)
    with Progress("packing", len(data), "image") as progress:

        def images() -> Iterator[np.ndarray]:
            for batch in eval_batches(data, BATCH, args.num_workers, bad=bad.report):
                yield from batch.numpy()
                progress.update(len(batch))

        pack_images(args.out, images())
    print(f"{len(data)} images in {args.out}")


if __name__ == "__main__":
    run_script(main)
