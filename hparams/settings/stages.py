"""The settings that every script has, and the stages of the training scripts.

A group is a dataclass of fields, a stage one of groups. A field's name is its flag (``nf`` is ``--nf``) and its key in
a saved ``hparams.yaml``; it is unique within a stage. A field whose default is None though its type is not optional is
filled in by `hparams.resolve`, most of them by `hparams.derived`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

from hparams.fields import Group, setting
from hparams.settings.data import DataSettings
from hparams.settings.models import AutoencoderSettings, PriorSettings, VQGANSettings
from hparams.settings.sampling import SamplingSettings
from hparams.settings.training import TrainingSettings

SinkName = Literal["visdom", "summary", "tensorboard", "wandb"]
SINKS: tuple[SinkName, ...] = ("visdom", "summary")

_data = partial(setting, subject="data")
_device = partial(setting, subject="device and precision")
_shown = partial(setting, subject="dashboard and terminal")  # which no weight depends on
_together = partial(setting, subject="several processes", saved=False)


@dataclass(frozen=True)
class RunSettings(DataSettings, title="run"):
    log_dir: str = setting(None, "run folder, under logs/; may contain slashes", "name")
    seed: int = setting(0, "seed of every random stream", "seed", minimum=0, maximum=2**63 - 1)
    device: str = _device("auto", "auto (CUDA when there is one), cpu, cuda or cuda:N", "device")
    amp: bool = _device(False, "mixed precision, of the type --amp_dtype")
    amp_dtype: Literal["auto", "bfloat16", "float16"] = _device(
        "auto", "type for --amp; auto: bfloat16 where the hardware has it, else float16 with a loss scaler"
    )
    compile: Literal["auto", "on", "off"] = _device(
        "auto", "compile layers, and replay steps as CUDA graphs; auto: on CUDA, no graphs when several processes train"
    )
    batch_size: int = setting(20, "images in a batch of each process", "images")
    num_workers: int = _data(4, "processes that read images; 0: the main process reads them", "n", minimum=0)
    max_bad_images: float = _data(
        0.01, "end when a larger share of images is unreadable; else others stand in", "share", minimum=0, below=1
    )
    sinks: tuple[SinkName, ...] = _shown(
        SINKS, "what shows the run, or experiments/replay_dashboard.py later; summary: summary.png", allow_empty=True
    )
    visdom_server: str = _shown("http://localhost", "address of the visdom server, without its port", "url")
    visdom_port: int = _shown(8097, "port of the visdom server", "port", maximum=65535)
    visdom_base_url: str = _shown("/", "path below which the visdom server answers, as its own -base_url", "path")
    quiet: bool = _shown(False, "print nothing but warnings, errors and results", saved=False)
    dist_backend: Literal["auto", "nccl", "gloo"] = _together(
        "auto", "under torchrun: how processes communicate; auto: nccl if each has a GPU of its own, else gloo"
    )
    dist_timeout: int = _together(600, "under torchrun: how long one process waits for another", "seconds")
    dry_run: bool = setting(False, "check the settings, print them, and stop", saved=False)
    traceback: bool = setting(False, "show the traceback of an error above its line", saved=False)


@dataclass(frozen=True)
class AutoencoderSource(Group, title="trained autoencoder"):
    ae_load_dir: str | None = setting(None, "run of the trained VQGAN, under logs/", "run", none_means="required")
    ae_load_step: int | None = setting(None, "step of the trained VQGAN", "step", none_means="the newest")


@dataclass(frozen=True)
class Stage:
    """All settings of a script that works on a data set, in a run folder.

    A subclass names the `tables` of `hparams.presets` that it adds to those of its base, later ones winning; `log_dir`,
    the run folder's name where none is typed, with {dataset} and {sampler} filled in; and whether its script opens the
    data set (`reads_data`).
    """

    preset_tables: ClassVar[tuple[str, ...]] = ()
    default_log_dir: ClassVar[str] = "{dataset}"
    reads_data: ClassVar[bool] = True

    run: RunSettings

    def __init_subclass__(cls, tables: tuple[str, ...] = (), log_dir: str = "", reads_data: bool = True) -> None:
        cls.preset_tables, cls.reads_data = (*cls.preset_tables, *tables), reads_data
        cls.default_log_dir = log_dir or cls.default_log_dir


@dataclass(frozen=True)
class VQGANStage(Stage, tables=("autoencoder", "autoencoder_training"), log_dir="vqgan_{dataset}"):
    """Stage 1: images to codes and back."""

    training: TrainingSettings
    autoencoder: AutoencoderSettings
    vqgan: VQGANSettings


@dataclass(frozen=True)
class PriorStage(Stage, tables=("autoencoder", "prior", "prior_training"), log_dir="{sampler}_{dataset}"):
    """Stage 2: a prior over the codes."""

    training: TrainingSettings
    source: AutoencoderSource
    autoencoder: AutoencoderSettings
    prior: PriorSettings
    sampling: SamplingSettings
