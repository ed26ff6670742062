"""Settings that follow from others where they were not given."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

from hparams.errors import UserError
from hparams.fields import as_text


def derive(values: dict[str, Any]) -> None:
    """Fill in what follows from others, in place: settings of any stage by name, None where they are to follow."""
    for name, follow in _FOLLOWS.items():
        if name in values and values[name] is None:
            values[name] = follow(values)


def latent_shape(img_size: int, ch_mult: tuple[int, ...]) -> tuple[int, int, int]:
    """Shape (1, h, w) of one image's codes: each level but the first halves the image. UserError if that cannot be."""
    factor = 2 ** (len(ch_mult) - 1)
    if img_size % factor:
        raise UserError(
            f"--img_size {img_size} cannot be halved {len(ch_mult) - 1} times, as the {len(ch_mult)} levels of "
            f"--ch_mult {as_text(ch_mult)} need: use a multiple of {factor}"
        )
    return (1, img_size // factor, img_size // factor)


def bound_terms(code_bound: str, total_steps: int, block_size: int) -> int:
    """How many levels of masking a bound on the codes sums over."""
    return total_steps if code_bound == "t_step" else block_size


def _sides(values: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width in codes; of a shape that the checks will refuse, any."""
    shape = [*values["latent_shape"], 1, 1]
    return shape[1], shape[2]


def _lower_half(img_size: int) -> tuple[int, int, int, int]:
    return (img_size // 2, 0, img_size - img_size // 2, img_size)


_FOLLOWS: dict[str, Callable[[Mapping[str, Any]], Any]] = {  # later ones from earlier ones
    "global_batch": lambda v: v["batch_size"] * v["accumulate_steps"],  # of one process; else see `divide_batch`
    "lr": lambda v: v["base_lr"] * v["global_batch"],
    "latent_shape": lambda v: latent_shape(v["img_size"], v["ch_mult"]),
    "block_size": lambda v: math.prod(_sides(v)),
    "shape": lambda v: (_sides(v)[0], 2 * _sides(v)[1]),
    "bits": lambda v: 5 if v["protocol"] == "published" else 8,
    "elbo_steps": lambda v: min(64, 2 * bound_terms(v["code_bound"], v["total_steps"], v["block_size"])),
    "region": lambda v: _lower_half(v["img_size"]) if v["mask_path"] is None else None,
    "sample_steps": lambda v: v["total_steps"],
}


def divide_batch(values: dict[str, Any], typed: Collection[str], kept: Mapping[str, Any], processes: int) -> None:
    """Make `global_batch` = `batch_size` · `accumulate_steps` · `processes` (those that share an update), in place.

    `values` are settings by name, `typed` the flags among them, `kept` those of a run that goes on. `global_batch` is
    settled first: as typed, else as kept, since the updates of a run keep their size on any number of processes, else
    as the product. UserError if the three do not fit.
    """
    if values["global_batch"] is None and "batch_size" in kept:  # an old run: one process, whose batch was the update
        values["global_batch"] = kept["batch_size"]
    elif values["global_batch"] is None:
        values["global_batch"] = values["batch_size"] * values["accumulate_steps"] * processes
    whole = values["global_batch"]
    share, rest = divmod(whole, processes)
    if rest:
        raise UserError(
            f"--global_batch {whole}: {processes} processes cannot share an update of {whole} images evenly: use a "
            "number of processes that divides it, or another --global_batch"
        )
    fixed, follows = "accumulate_steps", "batch_size"
    if "batch_size" in typed:
        fixed, follows = follows, fixed
    if follows not in typed:
        values[follows] = max(1, share // values[fixed])
    if values["batch_size"] * values["accumulate_steps"] != share:
        raise UserError(
            f"--{fixed} {values[fixed]}: of updates of {whole} images (--global_batch) each process has {share}, which "
            f"are not --accumulate_steps {values['accumulate_steps']} passes of --batch_size {values['batch_size']}: "
            "change one of the three"
        )
