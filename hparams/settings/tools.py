"""The settings of commands that no preset and no saved run has a say in: packing images, showing a past run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hparams.fields import Group, setting
from hparams.settings.stages import FolderDataset, Plain, SinkName


@dataclass(frozen=True)
class PackSettings(Group, title="packing"):
    """Which images to pack, at which size, and where to."""

    dataset: Literal[FolderDataset] | None = setting(None, "data set to pack", none_means="required")
    custom_dataset_path: str | None = setting(None, "folder of images, for --dataset custom", unit="folder")
    datasets_file: str = setting("datasets.yaml", "file that says where each data set lies", unit="file")
    img_size: int = setting(256, "side of the packed images", unit="pixels")
    num_workers: int = setting(4, "processes that read images; 0: the main process reads them", unit="n", minimum=0)
    max_bad_images: float = setting(0.01, "end when a larger share is unreadable", unit="share", minimum=0, below=1)
    out: str | None = setting(None, "folder to write; must not exist", unit="folder", none_means="required")
    dry_run: bool = setting(False, "check the settings, say what would be done, and stop", saved=False)
    traceback: bool = setting(False, "show the traceback of an error above its line", saved=False)


@dataclass(frozen=True)
class Pack(Plain):
    """A folder of images, packed."""

    pack: PackSettings


@dataclass(frozen=True)
class ReplaySettings(Group, title="replay"):
    """Which past run to show, and where."""

    log_dir: str | None = setting(None, "run folder to show, under logs/", unit="run", none_means="required")
    visdom_server: str = setting("http://localhost", "address of the visdom server, without its port", unit="url")
    visdom_port: int = setting(8097, "port of the visdom server", unit="port", maximum=65535)
    visdom_base_url: str = setting("/", "path below which the visdom server answers, as its own -base_url", unit="path")
    sinks: tuple[SinkName, ...] = setting(
        ("visdom", "summary"), "what shows the run: a visdom server, summary.png, TensorBoard, Weights & Biases"
    )
    dry_run: bool = setting(False, "check the settings, say what would be done, and stop", saved=False)
    traceback: bool = setting(False, "show the traceback of an error above its line", saved=False)


@dataclass(frozen=True)
class Replay(Plain):
    """A past run, shown again."""

    replay: ReplaySettings
