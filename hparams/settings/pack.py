"""Settings of the command that packs a folder of images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from hparams.fields import setting
from hparams.settings.stages import FolderDataset, Plain


@dataclass(frozen=True)
class PackSettings:
    """Which images to pack, at which size, and where to."""

    title: ClassVar[str] = "packing"

    dataset: Literal[FolderDataset] | None = setting(None, help="data set to pack", none_means="required")
    custom_dataset_path: str | None = setting(None, help="folder of images, for --dataset custom", unit="folder")
    datasets_file: str = setting("datasets.yaml", help="file that says where each data set lies", unit="file")
    img_size: int = setting(256, help="side of the packed images", unit="pixels", minimum=1)
    num_workers: int = setting(
        4, help="processes that read images; 0: the main process reads them", unit="n", minimum=0
    )
    max_bad_images: float = setting(
        0.01, help="end when a larger share of the images is unreadable", unit="share", minimum=0, below=1
    )
    out: str | None = setting(None, help="folder to write; must not exist", unit="folder", none_means="required")
    dry_run: bool = setting(False, help="check the settings, say what would be done, and stop", saved=False)
    traceback: bool = setting(False, help="show the traceback of an error above its line", saved=False)


@dataclass(frozen=True)
class Pack(Plain):
    """A folder of images, packed."""

    pack: PackSettings
