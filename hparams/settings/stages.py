"""The settings that several scripts share, and the stages of the training scripts: groups of fields, stages of groups.

A field's name is its flag (``nf`` is ``--nf``) and its key in a saved ``hparams.yaml``; it is unique within a stage.
Groups of a concept of their own are in ``hparams.settings.training``, ``hparams.settings.models`` and, for experiments,
``hparams.settings.experiments``. ``hparams.presets`` holds what differs by stage and data set.
``hparams.checks`` refuses values that do not fit together, ``hparams.idle`` knows what does nothing beside others.
A field whose default is None though its type is not optional is filled in by :func:`hparams.resolve.resolve`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from hparams.fields import setting
from hparams.settings.models import AutoencoderSettings, PriorSettings, VQGANSettings
from hparams.settings.training import TrainingSettings

SinkName = Literal["visdom", "summary", "tensorboard", "wandb"]
FolderDataset = Literal["ffhq", "custom"]  # those that lie in a folder of images


@dataclass(frozen=True)
class RunSettings:
    """What every script needs: data, run folder, device, dashboard."""

    title: ClassVar[str] = "run"

    dataset: Literal["churches", "bedrooms", FolderDataset, "toy_churches"] = setting(
        None, help="data set; picks the preset", none_means="that of the loaded run, else required", subject="data"
    )
    custom_dataset_path: str | None = setting(
        None, help="folder of images, for --dataset custom", unit="folder", subject="data"
    )
    datasets_file: str = setting(
        "datasets.yaml", help="file that says where each data set lies", unit="file", subject="data"
    )
    log_dir: str = setting(None, help="run folder, under logs/; may contain slashes", unit="name")
    seed: int = setting(0, unit="seed", help="seed of every random stream", minimum=0, maximum=2**63 - 1)
    device: str = setting(
        "auto", unit="device", help="auto (CUDA when there is one), cpu, cuda or cuda:N", subject="device and precision"
    )
    amp: bool = setting(False, help="mixed precision, of the type --amp_dtype", subject="device and precision")
    amp_dtype: Literal["auto", "bfloat16", "float16"] = setting(
        "auto",
        help="type for --amp; auto: bfloat16 where the hardware has it, else float16 with a loss scaler",
        subject="device and precision",
    )
    compile: Literal["auto", "on", "off"] = setting(
        "auto",
        help="compile the layers, and on CUDA replay steps as graphs; auto: on CUDA only, without the decoder of "
        "experiments, and without graphs when several processes train",
        subject="device and precision",
    )
    batch_size: int = setting(20, help="images in a batch of each process", unit="images", minimum=1)
    num_workers: int = setting(
        4, help="processes that read images; 0: the main process reads them", unit="n", minimum=0, subject="data"
    )
    max_bad_images: float = setting(
        0.01,
        help="end when a larger share of the images is unreadable; until then others stand in for them",
        unit="share",
        minimum=0,
        below=1,
        subject="data",
    )
    toy_images: int = setting(
        10_000,
        help="training scenes drawn for toy_churches; validation gets a tenth, at least 64",
        unit="images",
        minimum=1,
        subject="data",
    )
    sinks: tuple[SinkName, ...] = setting(
        ("visdom", "summary"),
        help="what shows the run: a visdom server; summary.png, a page that is drawn at training's checkpoints and at "
        "an experiment's end; TensorBoard; Weights & Biases. experiments/replay_dashboard.py shows it later, too",
        allow_empty=True,
        subject="dashboard and terminal",
    )
    visdom_server: str = setting(
        "http://localhost",
        help="address of the visdom server, without its port",
        unit="url",
        subject="dashboard and terminal",
    )
    visdom_port: int = setting(
        8097,
        help="port of the visdom server",
        unit="port",
        minimum=1,
        maximum=65535,
        subject="dashboard and terminal",
    )
    visdom_base_url: str = setting(
        "/",
        help="path below which the visdom server answers, as its own -base_url",
        unit="path",
        subject="dashboard and terminal",
    )
    quiet: bool = setting(
        False,
        help="print nothing but warnings, errors and results",
        saved=False,
        subject="dashboard and terminal",
    )
    dist_backend: Literal["auto", "nccl", "gloo"] = setting(
        "auto",
        help="under torchrun: how processes communicate; auto: nccl if each has a GPU of its own, else gloo",
        saved=False,
        subject="several processes",
    )
    dist_timeout: int = setting(
        600,
        help="under torchrun: how long one process waits for another",
        unit="seconds",
        minimum=1,
        saved=False,
        subject="several processes",
    )
    dry_run: bool = setting(False, help="check the settings, print them, and stop", saved=False)
    traceback: bool = setting(False, help="show the traceback of an error above its line", saved=False)


@dataclass(frozen=True)
class AutoencoderSource:
    """Which trained autoencoder makes the codes."""

    title: ClassVar[str] = "trained autoencoder"

    ae_load_dir: str | None = setting(
        None, help="run folder of the trained VQGAN, under logs/", unit="run", none_means="required"
    )
    ae_load_step: int | None = setting(
        None, help="step of the trained VQGAN", unit="step", minimum=1, none_means="the newest"
    )


@dataclass(frozen=True)
class SamplingSettings:
    """How images are drawn from the prior."""

    title: ClassVar[str] = "sampling"

    n_samples: int = setting(64, help="images to draw", unit="images", minimum=1)
    temp: float = setting(1.0, help="sampling temperature of the codes", unit="tau", above=0)
    sample_steps: int = setting(
        None,
        help="sampling steps, at most total_steps",
        unit="steps",
        minimum=1,
        none_means="total_steps",
    )
    sample_type: Literal["diffusion", "mlm"] = setting(
        "diffusion", help="diffusion: ancestral sampling; mlm: predicting and masking again, repeatedly"
    )


@dataclass(frozen=True)
class Plain:
    """All settings of one script. ``preset_tables`` name tables of ``hparams.presets``, later ones winning."""

    preset_tables: ClassVar[tuple[str, ...]] = ()


@dataclass(frozen=True)
class Stage(Plain):
    """All settings of a script that works on a data set, in a run folder."""

    default_log_dir: ClassVar[str] = "{dataset}"  # may use {dataset} and {sampler}
    reads_data: ClassVar[bool] = True  # whether it opens the data set

    run: RunSettings


@dataclass(frozen=True)
class VQGANStage(Stage):
    """Stage 1: images to codes and back."""

    preset_tables: ClassVar[tuple[str, ...]] = ("autoencoder", "autoencoder_training")
    default_log_dir: ClassVar[str] = "vqgan_{dataset}"

    training: TrainingSettings
    autoencoder: AutoencoderSettings
    vqgan: VQGANSettings


@dataclass(frozen=True)
class PriorStage(Stage):
    """Stage 2: a prior over the codes."""

    preset_tables: ClassVar[tuple[str, ...]] = ("autoencoder", "{sampler}", "{sampler}_training")
    default_log_dir: ClassVar[str] = "{sampler}_{dataset}"

    training: TrainingSettings
    source: AutoencoderSource
    autoencoder: AutoencoderSettings
    prior: PriorSettings
    sampling: SamplingSettings
