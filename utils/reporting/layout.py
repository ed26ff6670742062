"""Which panes a run has, in which order, and which of its metrics each one shows. Visdom and the summary page use it.

A metric, picture or text that is named nowhere here gets a pane of its own, after the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TRAIN, VAL = "train", "val"
BOTH = (TRAIN, VAL)

# Metrics without a pane: the status says them, or another metric says more.
HIDDEN = frozenset({"steps_per_second", "skipped_updates", "batch_perplexity"})
BASELINES = "codes"  # the split of numbers that are no curve, such as the entropy of the codes


@dataclass(frozen=True)
class Curves:
    """A pane of curves over the steps. `labels`: metric → name of its curve; None: the window's own metric alone.

    Curves of a pane with a single metric are named by split: train and validation stand in one plot. `splits` None: all
    that come.
    """

    window: str
    title: str
    ylabel: str
    splits: tuple[str, ...] | None = (TRAIN,)
    labels: Mapping[str, str] | None = None
    stacked: bool = False
    from_zero: bool = False

    def metrics(self) -> list[str]:
        """The metrics that the pane shows."""
        return list(self.labels) if self.labels else [self.window]

    def values(self, split: str, metrics: Mapping[str, float]) -> dict[str, float]:
        """The points of one step, by curve."""
        if self.labels:
            return {name: metrics[metric] for metric, name in self.labels.items() if metric in metrics}
        shown = self.splits is None or split in self.splits
        return {split: metrics[self.window]} if self.window in metrics and shown else {}


@dataclass(frozen=True)
class Bars:
    """A pane with a bar for each entry of a histogram."""

    window: str
    title: str
    xlabel: str = ""
    ylabel: str = ""
    first: int = 0  # number of the first bar
    descending: bool = False  # largest first


@dataclass(frozen=True)
class Pictures:
    """A pane of pictures, two cells wide; until the first comes, it says what `awaits` says."""

    window: str
    title: str
    rows: int = 2  # height in cells
    awaits: str = ""


@dataclass(frozen=True)
class Words:
    """A pane of text, or with a table."""

    window: str
    title: str


Pane = Curves | Bars | Pictures | Words

STATUS = "run"  # the text that says where a training run stands

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
_RATE = Curves("lr", "learning rate", "rate", from_zero=True)
_ADVERSARIAL = {"g_loss": "generator", "d_loss": "discriminator"}
_MEMORY = {"gpu_memory_gib": "in use outside CUDA graphs", "gpu_reserved_gib": "reserved"}
_WAYS_OF_MASKING = {"random": "t, tokens masked with probability t/T", "fixed": "t, round(t/T · N) of N tokens masked"}

# Of what comes unannounced: what only some machines have, and what experiments show.
_OTHERS: tuple[Pane, ...] = (
    *_MACHINE,
    Curves("gpu_memory", "GPU memory, peak", "GiB", labels=_MEMORY),
    Curves("pixel_bits_per_dim", "pixel term", "bits per dimension", BOTH),
    Pictures("originals_over_reconstructions", "originals over reconstructions"),
    Pictures("neighbours", "samples, then the nearest training images"),
    Pictures("inpainted", "images, what is given of them, completions"),
)


def panes_of(settings: Mapping[str, Any]) -> list[Pane]:
    """The panes that a training run has from the start, by its settings, as in `hparams.yaml`; an experiment has none.

    A setting that is missing counts as one that adds nothing.
    """
    if "steps_per_checkpoint" not in settings:
        return []
    every = settings.get("steps_per_display_output")
    awaits = f"every {every} steps" if every else "none"
    panes = _prior_panes(settings, awaits) if "sampler" in settings else _vqgan_panes(settings, awaits)
    if not settings.get("steps_per_eval"):
        panes = [pane for pane in panes if not (isinstance(pane, Curves) and pane.splits == (VAL,))]
    return [*panes, _RATE, *_MACHINE]


def new_pane(kind: type[Pane], name: str) -> Pane:
    """The pane of something that has come, and has none yet."""
    for pane in _OTHERS:
        if isinstance(pane, kind) and name in (pane.metrics() if isinstance(pane, Curves) else [pane.window]):
            return pane
    title = name.replace("_", " ")
    return Curves(name, title, "", None) if kind is Curves else kind(name, title)  # type: ignore[call-arg]


def read_settings(path: Path) -> dict[str, Any]:
    """What an `hparams.yaml` says, as far as it can be read: a page is drawn without it too."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def _vqgan_panes(settings: Mapping[str, Any], awaits: str) -> list[Pane]:
    perceptual = settings.get("perceptual", "none") != "none" and settings.get("perceptual_weight")
    return [
        Pictures("originals_over_reconstructions", "originals over reconstructions", awaits=awaits),
        Words(STATUS, "run"),
        Curves("l1", "L1", "mean |x − x̂|, pixels in 0..1", BOTH),
        *([Curves("perceptual", "perceptual loss", "λ · LPIPS", BOTH)] if perceptual else []),
        Curves("loss", "total loss of the autoencoder", "loss"),
        Curves("codebook", "codebook loss", "loss"),
        Curves("adversarial", "adversarial losses", "hinge loss", labels=_ADVERSARIAL),
        Curves("disc_weight", "adaptive weight of the generator's loss", "weight"),
        Curves("psnr_db", "PSNR", "dB", (VAL,)),
        Curves("codebook_perplexity", "codebook perplexity", "codes", BOTH),
        Curves("codebook_used", "codebook usage", "share of the codes", BOTH),
        Bars("code_counts", "uses of each code, last window", "codes, most used first", "uses / step", descending=True),
    ]


def _prior_panes(settings: Mapping[str, Any], awaits: str) -> list[Pane]:
    absorbing = settings["sampler"] == "absorbing"
    # An autoregressive prior has bits per token, whatever the idle --loss_type says.
    unit = "nats / masked token" if absorbing and settings.get("loss_type") == "mlm" else "bits / token"
    panes: list[Pane] = [
        Pictures("samples", "samples", awaits=awaits),
        Words(STATUS, "run"),
        Curves("loss", "objective", unit, BOTH),
        Curves("elbo_bits_per_token", "ELBO", "bits / token", BOTH),
    ]
    if absorbing:
        masked = _WAYS_OF_MASKING.get(str(settings.get("mask_schedule")), "t")
        unmasking = "one sample while it is unmasked, over the most probable images"
        panes += [
            Bars("loss_by_time", "objective by timestep, moving average", masked, unit, first=1),
            Pictures("unmasking", unmasking, rows=1, awaits=awaits),
        ]
    return panes


def cell(value: object) -> str:
    """A value of a table on one line; numbers have four digits, and None is left blank."""
    if value is None:
        return ""
    shown = f"{value:.4g}" if isinstance(value, float) else str(value)
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in shown)


def escaped(text: str) -> str:
    """A text that fonts and visdom's server take: names of files may be any bytes."""
    return text.encode(errors="backslashreplace").decode()
