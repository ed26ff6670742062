"""The settings of the training scripts, and what every script needs: groups of fields, and stages made of groups.

A field's name is its flag (``nf`` is ``--nf``) and its key in a saved ``hparams.yaml``; it is unique within a stage.
Defaults are those of the published 256-pixel models. ``hparams.presets`` holds what differs by stage and data set,
``hparams.experiments`` what only experiments need.
A field whose default is None though its type is not optional is filled in by :func:`hparams.resolve.resolve`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from hparams.fields import setting


@dataclass(frozen=True)
class RunSettings:
    """What every script needs: data, run folder, device, dashboard."""

    title: ClassVar[str] = "run"

    dataset: Literal["churches", "bedrooms", "ffhq", "custom", "toy_churches"] = setting(
        None, help="data set; picks the preset", none_means="that of a reloaded run, else required", subject="data"
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
    amp: bool = setting(False, help="mixed precision", subject="device and precision")
    amp_dtype: Literal["auto", "bfloat16", "float16"] = setting(
        "auto",
        help="type for --amp; auto is bfloat16 where the hardware has it, else float16 with a loss scaler",
        subject="device and precision",
    )
    compile: Literal["auto", "on", "off"] = setting(
        "auto",
        help="compile layers with torch.compile; auto: the prior's, on CUDA; on: the VQGAN's too, which takes minutes",
        subject="device and precision",
    )
    batch_size: int = setting(20, help="images per step on each device", unit="images", minimum=1)
    num_workers: int = setting(
        4, help="processes that read images; 0 reads in the main one", unit="n", minimum=0, subject="data"
    )
    max_bad_images: float = setting(
        0.01,
        help="share of the images that may be unreadable; others stand in for them",
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
    visdom_server: str = setting(
        "http://localhost", help="address of the visdom dashboard", unit="url", subject="dashboard and terminal"
    )
    visdom_port: int = setting(
        8097,
        help="port of the visdom dashboard",
        unit="port",
        minimum=1,
        maximum=65535,
        subject="dashboard and terminal",
    )
    quiet: bool = setting(
        False,
        help="nothing on the terminal but warnings, errors and results",
        saved=False,
        subject="dashboard and terminal",
    )
    dist_backend: Literal["auto", "nccl", "gloo"] = setting(
        "auto",
        help="under torchrun: what carries tensors; auto is nccl where each process has a GPU",
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
    dry_run: bool = setting(False, help="resolve and check the settings, print them, and stop", saved=False)


@dataclass(frozen=True)
class TrainingSettings:
    """The training loop of either stage."""

    title: ClassVar[str] = "training"

    lr: float = setting(None, help="learning rate of Adam", unit="rate", above=0, none_means="base_lr * global_batch")
    train_steps: int = setting(
        2_000_000,
        help="updates to train for; lengths are published for churches only, other data sets use the same",
        unit="steps",
        minimum=1,
    )
    global_batch: int = setting(
        None,
        help="images per update, over all processes; a resumed run keeps it with any number of processes",
        unit="images",
        minimum=1,
        none_means="batch_size * accumulate_steps * processes",
    )
    accumulate_steps: int = setting(
        1,
        help="passes of --batch_size images, on each device, that make one update: as one large pass would, but that "
        "stage 1's discriminator takes its batch-norm statistics from each pass",
        unit="passes",
        minimum=1,
    )
    compress_gradients: bool = setting(
        False, help="send gradients between processes as bfloat16: half the bytes", subject="several processes"
    )
    ema: bool = setting(False, help="keep an exponential moving average of the weights", subject="moving average")
    ema_beta: float = setting(
        0.995, help="decay of the moving average", unit="beta", minimum=0, below=1, subject="moving average"
    )
    steps_per_update_ema: int = setting(
        10, help="updates between two of the moving average", unit="steps", minimum=1, subject="moving average"
    )
    load_dir: str | None = setting(
        None,
        help="run to take the starting weights from, with --load_step",
        unit="run",
        none_means="this run's own",
        subject="starting and resuming",
    )
    load_step: int = setting(
        0, help="step of the starting weights; 0 starts afresh", unit="step", minimum=0, subject="starting and resuming"
    )
    load_optim: bool = setting(
        False, help="with --load_step, read the optimisers' state of that step too", subject="starting and resuming"
    )
    resume: bool = setting(
        False,
        help="continue this run exactly, from its newest whole step and with its saved settings",
        saved=False,
        subject="starting and resuming",
    )
    steps_per_log: int = setting(
        10, help="steps between two log lines", unit="steps", minimum=1, subject="logging, validation and pictures"
    )
    steps_per_eval: int = setting(
        0,
        help="steps between two validations; 0 holds no validation set out of a folder",
        unit="steps",
        minimum=0,
        subject="logging, validation and pictures",
    )
    steps_per_checkpoint: int = setting(
        25_000,
        help="steps between two checkpoints; the last step is always saved",
        unit="steps",
        minimum=0,
        subject="checkpoints",
    )
    keep_states: int = setting(
        2,
        help="newest steps that keep what --resume needs; older ones keep their weights only",
        unit="steps",
        minimum=1,
        subject="checkpoints",
    )
    keep_checkpoints: str = setting(
        "all", help="newest steps that keep their weights: a number, or all", unit="n", subject="checkpoints"
    )
    max_skipped: int = setting(
        100, help="updates in a row with gradients that are not finite, before the run ends", unit="updates", minimum=1
    )
    steps_per_display_output: int = setting(
        5_000,
        help="steps between two pictures on the dashboard; 0 for none",
        unit="steps",
        minimum=0,
        subject="logging, validation and pictures",
    )
    steps_per_save_output: int = setting(
        5_000,
        help="steps between two pictures written to images/; 0 for none",
        unit="steps",
        minimum=0,
        subject="logging, validation and pictures",
    )
    summary: bool = setting(
        True,
        help="draw summary.png, one page of curves and pictures, at every checkpoint",
        subject="logging, validation and pictures",
    )
    save_individually: bool = setting(
        False, help="write each picture to a file of its own, not in a grid", subject="logging, validation and pictures"
    )
    horizontal_flip: bool = setting(False, help="train on flipped images too")


@dataclass(frozen=True)
class AutoencoderSettings:
    """The VQGAN's generator: everything needed to rebuild it."""

    title: ClassVar[str] = "autoencoder"

    quantizer: Literal["nearest", "gumbel"] = setting("nearest", help="how features become codes")
    codebook_size: int = setting(1024, help="number of codes, K", unit="codes", minimum=2)
    emb_dim: int = setting(256, help="width of a code", unit="channels", minimum=1)
    nf: int = setting(128, help="width of the first level, a multiple of 32", unit="channels", minimum=1)
    ch_mult: tuple[int, ...] = setting(
        (1, 1, 2, 2, 4),
        help="width of each level, as multiples of nf; each level but the first halves the image",
        unit="multiple",
        minimum=1,
    )
    res_blocks: int = setting(2, help="residual blocks per level", unit="blocks", minimum=1)
    attn_resolutions: tuple[int, ...] = setting(
        (16,),
        help="sides of the feature maps that get attention; none given: only the middle has it",
        unit="pixels",
        minimum=1,
        allow_empty=True,
    )
    img_size: int = setting(256, help="side of the square images", unit="pixels", minimum=1)
    latent_shape: tuple[int, ...] = setting(
        None,
        help="shape of the codes of one image: 1, height, width",
        unit="n",
        minimum=1,
        none_means="1 s s, s = img_size / 2^(levels - 1)",
    )
    n_channels: int = setting(3, help="colour channels of an image", unit="channels", minimum=1)
    beta: float = setting(0.25, help="factor of one term of the quantizer's loss", unit="weight", minimum=0)
    beta_term: Literal["codebook", "commitment"] = setting(
        "codebook", help="which term beta weighs: as in the published code, or as the VQ-VAE paper has it"
    )
    gumbel_kl_weight: float = setting(1e-8, help="factor of the gumbel quantizer's KL term", unit="weight", minimum=0)
    gumbel_straight_through: bool = setting(False, help="hard codes in the gumbel quantizer's forward pass")


@dataclass(frozen=True)
class VQGANSettings:
    """Losses, discriminator and codebook care of stage 1."""

    title: ClassVar[str] = "VQGAN losses"

    ndf: int = setting(64, help="width of the discriminator's first layer", unit="channels", minimum=1)
    disc_layers: int = setting(3, help="strided layers of the discriminator", unit="layers", minimum=1)
    disc_start_step: int = setting(30_001, help="step from which the discriminator counts", unit="step", minimum=0)
    disc_weight_max: float = setting(1.0, help="bound of the adaptive adversarial weight", unit="weight", minimum=0)
    perceptual: Literal["lpips", "none"] = setting("lpips", help="perceptual loss; none needs no downloaded weights")
    perceptual_weights_file: str | None = setting(
        None, help="LPIPS (VGG16) weights on disk, for use without a network", unit="file", none_means="downloaded"
    )
    perceptual_weight: float = setting(1.0, help="factor of the perceptual loss", unit="weight", minimum=0)
    lpips_input: Literal["unit", "symmetric"] = setting(
        "unit", help="range of the images that LPIPS sees: 0..1 as in the published code, or -1..1 as it expects"
    )
    base_lr: float = setting(
        4.5e-6, help="learning rate per image of a batch, where --lr is not given", unit="rate", above=0
    )
    sync_batchnorm: bool = setting(
        True, help="with several processes, batch-norm statistics of the discriminator over all of them"
    )
    diff_aug: bool = setting(False, help="DiffAugment before the discriminator (the paper's best reconstructions)")
    codebook_init: Literal["uniform", "encoder"] = setting(
        "uniform", help="starting codes: uniform in -1/K..1/K, or drawn from the encoder's first outputs"
    )
    restart_dead_codes: int = setting(
        0,
        help="every so many steps, codes unused since the last time restart from encoder outputs; 0 is off",
        unit="steps",
        minimum=0,
    )
    restart_dead_codes_until: int = setting(
        0, help="step after which dead codes stay as they are; 0 for no such step", unit="step", minimum=0
    )


@dataclass(frozen=True)
class AutoencoderSource:
    """Which trained autoencoder makes the codes."""

    title: ClassVar[str] = "trained autoencoder"

    ae_load_dir: str | None = setting(
        None, help="run folder of the trained VQGAN, under logs/", unit="run", none_means="required"
    )
    ae_load_step: int | None = setting(None, help="its step", unit="step", minimum=1, none_means="the newest")


@dataclass(frozen=True)
class PriorSettings:
    """The prior over codes and its objective."""

    title: ClassVar[str] = "prior"

    sampler: Literal["absorbing", "autoregressive"] = setting("absorbing", help="kind of prior")
    bert_n_emb: int = setting(512, help="width of the Transformer", unit="channels", minimum=1)
    bert_n_head: int = setting(8, help="attention heads; they divide the width", unit="heads", minimum=1)
    bert_n_layers: int = setting(24, help="Transformer blocks", unit="layers", minimum=1)
    block_size: int = setting(
        None, help="codes per image, N", unit="codes", minimum=1, none_means="height * width of latent_shape"
    )
    attn_pdrop: float = setting(0.0, help="dropout of attention weights", unit="p", minimum=0, below=1)
    embd_pdrop: float = setting(0.0, help="dropout of embeddings", unit="p", minimum=0, below=1)
    resid_pdrop: float = setting(0.0, help="dropout of residual branches", unit="p", minimum=0, below=1)
    total_steps: int = setting(256, help="diffusion steps, T", unit="steps", minimum=1)
    loss_type: Literal["reweighted_elbo", "elbo", "mlm"] = setting("reweighted_elbo", help="training objective")
    reweighting: Literal["published", "paper"] = setting(
        "published", help="weights of reweighted_elbo: 1 - t/T as in the published code, or the paper's (T - t + 1)/T"
    )
    mask_schedule: Literal["random", "fixed"] = setting(
        "random", help="mask each code with probability t/T, or exactly round(t/T * N) of them"
    )
    warmup_iters: int = setting(10_000, help="steps of linear learning-rate warm-up", unit="steps", minimum=0)


@dataclass(frozen=True)
class SamplingSettings:
    """How images are drawn from the prior."""

    title: ClassVar[str] = "sampling"

    n_samples: int = setting(64, help="images to draw", unit="images", minimum=1)
    temp: float = setting(1.0, help="temperature of the codes' distribution", unit="tau", above=0)
    sample_steps: int = setting(
        None,
        help="steps of the reverse process, at most total_steps",
        unit="steps",
        minimum=1,
        none_means="total_steps",
    )
    sample_type: Literal["diffusion", "mlm"] = setting(
        "diffusion", help="ancestral sampling of the diffusion, or repeated re-masking"
    )


@dataclass(frozen=True)
class Plain:
    """All settings of one script. ``preset_tables`` name tables of ``hparams.presets``, later ones winning."""

    preset_tables: ClassVar[tuple[str, ...]] = ()


@dataclass(frozen=True)
class Stage(Plain):
    """All settings of a script that works on a data set, in a run folder."""

    default_log_dir: ClassVar[str] = "{dataset}"  # may use {dataset} and {sampler}
    several_processes: ClassVar[bool] = False  # whether the script runs under torchrun

    run: RunSettings


@dataclass(frozen=True)
class VQGANStage(Stage):
    """Stage 1: images to codes and back."""

    preset_tables: ClassVar[tuple[str, ...]] = ("autoencoder", "autoencoder_training")
    default_log_dir: ClassVar[str] = "vqgan_{dataset}"
    several_processes: ClassVar[bool] = True

    training: TrainingSettings
    autoencoder: AutoencoderSettings
    vqgan: VQGANSettings


@dataclass(frozen=True)
class PriorStage(Stage):
    """Stage 2: a prior over the codes."""

    preset_tables: ClassVar[tuple[str, ...]] = ("autoencoder", "{sampler}", "{sampler}_training")
    default_log_dir: ClassVar[str] = "{sampler}_{dataset}"
    several_processes: ClassVar[bool] = True

    training: TrainingSettings
    source: AutoencoderSource
    autoencoder: AutoencoderSettings
    prior: PriorSettings
    sampling: SamplingSettings
