"""Which panes a training run has, in which order, and which of its metrics each one shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from hparams.settings.stages import PriorStage, VQGANStage

TRAIN, VAL = "train", "val"


@dataclass(frozen=True)
class Curves:
    """A pane of curves over the steps. `labels`: metric → name of its curve; None: the window's own metric alone.

    Curves of a pane with a single metric are named by split: train and validation stand in one plot.
    """

    window: str
    title: str
    ylabel: str
    splits: tuple[str, ...] = (TRAIN,)
    labels: Mapping[str, str] | None = None
    stacked: bool = False
    from_zero: bool = False

    def names(self, validates: bool) -> list[str]:
        """Names of all curves that the pane may have."""
        if self.labels:
            return list(self.labels.values())
        return [split for split in self.splits if split == TRAIN or validates]

    def values(self, split: str, metrics: Mapping[str, float]) -> dict[str, float]:
        """The points of one step, by curve."""
        if self.labels:
            return {name: metrics[metric] for metric, name in self.labels.items() if metric in metrics}
        return {split: metrics[self.window]} if self.window in metrics and split in self.splits else {}


@dataclass(frozen=True)
class Bars:
    """A pane with a bar for each entry of a metric that is a vector."""

    window: str
    title: str
    xlabel: str
    ylabel: str
    first: int = 0  # number of the first bar
    descending: bool = False  # largest first


@dataclass(frozen=True)
class Pictures:
    """A pane of pictures, two cells wide."""

    window: str
    title: str
    rows: int = 2  # height in cells


@dataclass(frozen=True)
class Status:
    """A pane of text: where the run stands."""

    window: str = "run"
    title: str = "run"


Pane = Curves | Bars | Pictures | Status
BOTH = (TRAIN, VAL)
UNIT = "unit of the objective"
MASKED = "what is masked at t"
_WAYS_OF_MASKING = {"random": "t, tokens masked with probability t/T", "fixed": "t, round(t/T · N) of N tokens masked"}

_MACHINE = (
    Curves("images_per_second", "images per second", "images / s", from_zero=True),
    Curves(
        "milliseconds",
        "time of a step",
        "ms / step",
        labels={"data_ms": "data", "step_ms": "step", "other_ms": "other"},
        stacked=True,
    ),
)
_MEMORY = Curves(
    "gpu_memory",
    "GPU memory, peak",
    "GiB",
    labels={"gpu_memory_gib": "in use outside CUDA graphs", "gpu_reserved_gib": "reserved"},
)
_RATE = Curves("lr", "learning rate", "rate", from_zero=True)

_VQGAN: tuple[Pane, ...] = (
    Pictures("originals_over_reconstructions", "originals over reconstructions"),
    Status(),
    Curves("l1", "L1", "mean |x − x̂|, pixels in 0..1", BOTH),
    Curves("perceptual", "perceptual loss", "λ · LPIPS", BOTH),
    Curves("loss", "total loss of the autoencoder", "loss"),
    Curves("codebook", "codebook loss", "loss"),
    Curves(
        "adversarial",
        "adversarial losses",
        "hinge loss",
        labels={"g_loss": "generator", "d_loss": "discriminator"},
    ),
    Curves("disc_weight", "adaptive weight of the generator's loss", "weight"),
    Curves("psnr_db", "PSNR", "dB", (VAL,)),
    Curves("codebook_perplexity", "codebook perplexity", "codes", BOTH),
    Curves("codebook_used", "codebook usage", "share of the codes", BOTH),
    Bars("code_counts", "uses of each code, last window", "codes, most used first", "uses / step", descending=True),
    _RATE,
    *_MACHINE,
)
_PRIOR: tuple[Pane, ...] = (
    Pictures("samples", "samples"),
    Status(),
    Curves("loss", "objective", UNIT, BOTH),
    Curves("elbo_bits_per_token", "ELBO", "bits / token", BOTH),
)
_ABSORBING: tuple[Pane, ...] = (
    *_PRIOR,
    Bars("loss_by_time", "objective by timestep, moving average", MASKED, UNIT, first=1),
    Pictures("unmasking", "one sample while it is unmasked, over the most probable images", rows=1),
)


def panes_of(settings: VQGANStage | PriorStage, *, cuda: bool) -> list[Pane]:
    """The panes of a run, in their order."""
    memory = (_MEMORY,) if cuda else ()
    if isinstance(settings, VQGANStage):
        panes = [pane for pane in (*_VQGAN, *memory) if settings.vqgan.is_perceptual or pane.window != "perceptual"]
    elif settings.prior.sampler == "absorbing":
        panes = [*_ABSORBING, _RATE, *_MACHINE, *memory]
    else:
        panes = [*_PRIOR, _RATE, *_MACHINE, *memory]
    if isinstance(settings, PriorStage):
        prior = settings.prior  # an autoregressive one has bits per token, whatever the idle --loss_type says
        masked = prior.sampler == "absorbing" and prior.loss_type == "mlm"
        unit = "nats / masked token" if masked else "bits / token"
        panes = [replace(p, ylabel=unit) if isinstance(p, Curves | Bars) and p.ylabel == UNIT else p for p in panes]
        masking = _WAYS_OF_MASKING[prior.mask_schedule]
        panes = [replace(p, xlabel=masking) if isinstance(p, Bars) and p.xlabel == MASKED else p for p in panes]
    if not settings.training.steps_per_eval:
        panes = [pane for pane in panes if not (isinstance(pane, Curves) and pane.splits == (VAL,))]
    return panes
