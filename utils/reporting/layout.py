"""Which panes a run has, in which order, and which of its metrics each one shows. Visdom and the summary page use it.

A metric, picture or text that is named nowhere here gets a pane of its own, after the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

TRAIN, VAL = "train", "val"
BASELINES = "codes"  # the split of numbers that are no curve, such as the entropy of the codes


@dataclass(frozen=True)
class Pane:
    """A place on a run's page. `window`: name of what it shows."""

    window: str
    title: str

    def metrics(self) -> list[str]:
        """Names of what the pane shows."""
        return [self.window]


@dataclass(frozen=True)
class Curves(Pane):
    """A pane of curves over the steps.

    `labels`: metric → name of its curve; None: the window's own metric alone, with a curve for each split.
    """

    ylabel: str = ""
    labels: Mapping[str, str] | None = None
    stacked: bool = False
    from_zero: bool = False

    def metrics(self) -> list[str]:
        return list(self.labels or [self.window])

    def values(self, split: str, metrics: Mapping[str, float]) -> dict[str, float]:
        """The points of one step, by curve."""
        names = self.labels or {self.window: split}
        return {name: metrics[metric] for metric, name in names.items() if metric in metrics}


@dataclass(frozen=True)
class Bars(Pane):
    """A pane with a bar for each entry of a histogram."""

    xlabel: str = ""
    ylabel: str = ""
    first: int = 0  # number of the first bar
    descending: bool = False  # largest first


class Pictures(Pane):
    """A pane of pictures, one for each step, or a single one without a step."""


class Words(Pane):
    """A pane of text."""


STATUS = "run"  # the text that says where a training run stands

_PHASES = {"data_ms": "data", "step_ms": "step", "other_ms": "other"}
_MACHINE = (
    Curves("images_per_second", "images per second", "images / s", from_zero=True),
    Curves("milliseconds", "time of a step", "ms / step", _PHASES, stacked=True),
)
_RATE = Curves("lr", "learning rate", "rate", from_zero=True)
_ADVERSARIAL = {"g_loss": "generator", "d_loss": "discriminator"}
_MEMORY = {"gpu_memory_gib": "in use outside CUDA graphs", "gpu_reserved_gib": "reserved"}
_WAYS_OF_MASKING = {"random": "t, tokens masked with probability t/T", "fixed": "t, round(t/T · N) of N tokens masked"}

# Of what comes unannounced: what only some machines have, and what experiments show.
_OTHERS: tuple[Pane, ...] = (
    *_MACHINE,
    Curves("gpu_memory", "GPU memory, peak", "GiB", _MEMORY),
    Curves("pixel_bits_per_dim", "pixel term", "bits per dimension"),
    Pictures("neighbours", "samples, then the nearest training images"),
    Pictures("inpainted", "images, what is given of them, completions"),
)


def panes_of(settings: Mapping[str, Any]) -> list[Pane]:
    """The panes that a training run has from the start, by its settings, as in `hparams.yaml`; an experiment has none.

    A setting that is missing counts as one that adds nothing.
    """
    if "steps_per_checkpoint" not in settings:
        return []
    return [*(_prior_panes(settings) if "sampler" in settings else _vqgan_panes(settings)), _RATE, *_MACHINE]


def new_pane(kind: type[Pane], name: str) -> Pane:
    """The pane of something that has come, and has none yet."""
    known = (pane for pane in _OTHERS if isinstance(pane, kind) and name in pane.metrics())
    return next(known, kind(name, name.replace("_", " ")))


def cell(value: object) -> str:
    """A value of a table on one line; numbers have four digits, and None is left blank."""
    text = "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def plain_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table as text, its columns aligned."""
    lines = [[cell(value) for value in row] for row in (columns, *rows)]
    widths = [max(map(len, column)) for column in zip_longest(*lines, fillvalue="")]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def _vqgan_panes(settings: Mapping[str, Any]) -> list[Pane]:
    perceptual = settings.get("perceptual", "none") != "none" and settings.get("perceptual_weight")
    return [
        Pictures("originals_over_reconstructions", "originals over reconstructions"),
        Words(STATUS, "run"),
        Curves("l1", "L1", "mean |x − x̂|, pixels in 0..1"),
        *([Curves("perceptual", "perceptual loss", "λ · LPIPS")] if perceptual else []),
        Curves("loss", "total loss of the autoencoder", "loss"),
        Curves("codebook", "codebook loss", "loss"),
        Curves("adversarial", "adversarial losses", "hinge loss", _ADVERSARIAL),
        Curves("disc_weight", "adaptive weight of the generator's loss", "weight"),
        *([Curves("psnr_db", "PSNR", "dB")] if settings.get("steps_per_eval") else []),
        Curves("codebook_perplexity", "codebook perplexity", "codes"),
        Curves("codebook_used", "codebook usage", "share of the codes"),
        Bars("code_counts", "uses of each code, last window", "codes, most used first", "uses / step", descending=True),
    ]


def _prior_panes(settings: Mapping[str, Any]) -> list[Pane]:
    absorbing = settings["sampler"] == "absorbing"
    # An autoregressive prior has bits per token, whatever the idle --loss_type says.
    unit = "nats / masked token" if absorbing and settings.get("loss_type") == "mlm" else "bits / token"
    masked = _WAYS_OF_MASKING.get(str(settings.get("mask_schedule")), "t")
    of_absorbing = [
        Bars("loss_by_time", "objective by timestep, moving average", masked, unit, first=1),
        Pictures("unmasking", "one sample while it is unmasked, over the most probable images"),
    ]
    return [
        Pictures("samples", "samples"),
        Words(STATUS, "run"),
        Curves("loss", "objective", unit),
        Curves("elbo_bits_per_token", "ELBO", "bits / token"),
        *(of_absorbing if absorbing else []),
    ]
