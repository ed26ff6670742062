"""The settings of commands that no preset and no saved run has a say in: packing images, showing a past run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hparams.fields import Group, setting
from hparams.settings.data import FolderDataset
from hparams.settings.stages import SINKS, SinkName


@dataclass(frozen=True)
class PackSettings(Group, title="packing"):
    dataset: Literal[FolderDataset] | None = setting(None, "data set to pack", none_means="required")
    custom_dataset_path: str | None = setting(None, "folder of images, for --dataset custom", "folder")
    datasets_file: str = setting("datasets.yaml", "file that says where each data set lies", "file")
    img_size: int = setting(256, "side of the packed images", "pixels")
    num_workers: int = setting(4, "processes that read images; 0: the main process reads them", "n", minimum=0)
    max_bad_images: float = setting(0.01, "end when a larger share is unreadable", "share", minimum=0, below=1)
    out: str | None = setting(None, "folder to write; must not exist", "folder", none_means="required")
    dry_run: bool = setting(False, "check the settings, say what would be done, and stop", saved=False)
    traceback: bool = setting(False, "show the traceback of an error above its line", saved=False)


@dataclass(frozen=True)
class Pack:
    pack: PackSettings


@dataclass(frozen=True)
class ReplaySettings(Group, title="replay"):
    log_dir: str | None = setting(None, "run folder to show, under logs/", "run", none_means="required")
    visdom_server: str = setting("http://localhost", "address of the visdom server, without its port", "url")
    visdom_port: int = setting(8097, "port of the visdom server", "port", maximum=65535)
    visdom_base_url: str = setting("/", "path below which the visdom server answers, as its own -base_url", "path")
    sinks: tuple[SinkName, ...] = setting(SINKS, "what shows the run; summary: the page summary.png")
    dry_run: bool = setting(False, "check the settings, say what would be done, and stop", saved=False)
    traceback: bool = setting(False, "show the traceback of an error above its line", saved=False)


@dataclass(frozen=True)
class Replay:
    replay: ReplaySettings
