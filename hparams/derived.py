"""Settings that follow from others where they were not given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hparams.errors import UserError
from hparams.fields import as_text


def derive(values: dict[str, Any]) -> None:
    """Fill in what follows from others, in place: settings of any stage by name, None where they are to follow."""

    def missing(name: str) -> bool:
        return name in values and values[name] is None

    if missing("global_batch"):
        values["global_batch"] = values["batch_size"] * values["accumulate_steps"]
    if missing("lr"):
        values["lr"] = values["base_lr"] * values["global_batch"]
    if missing("latent_shape"):
        values["latent_shape"] = latent_shape(values["img_size"], values["ch_mult"])
    if len(values["latent_shape"]) == 3:  # any other is refused
        _, height, width = values["latent_shape"]
        if missing("block_size"):
            values["block_size"] = height * width
        if missing("shape"):
            values["shape"] = (height, 2 * width)
    if missing("bits"):
        values["bits"] = 5 if values["protocol"] == "published" else 8
    if missing("elbo_steps") and not missing("block_size"):
        terms = bound_terms(values["code_bound"], values["total_steps"], values["block_size"])
        values["elbo_steps"] = min(64, 2 * terms)
    if missing("region") and missing("mask_path"):
        side = values["img_size"]
        values["region"] = (side // 2, 0, side - side // 2, side)
    if missing("sample_steps"):
        values["sample_steps"] = values["total_steps"]


def latent_shape(img_size: int, ch_mult: tuple[int, ...]) -> tuple[int, int, int]:
    """Shape (1, h, w) of one image's codes: each level but the first halves the image.

    Raises:
        UserError: the image cannot be halved that often.
    """
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


def divide_batch(values: dict[str, Any], typed: Mapping[str, Any], kept: Mapping[str, Any], processes: int) -> None:
    """Make `global_batch` = `batch_size` · `accumulate_steps` · processes, in place.

    Args:
        values: settings by name; `global_batch` is None where neither typed nor kept.
        typed: the flags that were typed.
        kept: settings of the run that goes on. Its updates keep their size, whatever the number of processes.
        processes: how many share an update.

    Raises:
        UserError: they cannot.
    """
    if "batch_size" in kept and values["global_batch"] is None:  # saved before updates could be shared
        values["global_batch"] = kept["batch_size"]
    if values["global_batch"] is None:
        values["global_batch"] = values["batch_size"] * values["accumulate_steps"] * processes
    whole = values["global_batch"]
    if whole % processes:
        raise UserError(
            f"--global_batch {whole}: {processes} processes cannot share an update of {whole} images evenly: use a "
            "number of processes that divides it, or another --global_batch"
        )
    share = whole // processes
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
