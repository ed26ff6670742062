"""How the images of an update are divided: over processes, passes and batches. What was not typed follows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hparams.errors import UserError


def divide_batch(values: dict[str, Any], typed: Mapping[str, Any], kept: Mapping[str, Any], processes: int) -> None:
    """Make `global_batch` = `batch_size` · `accumulate_steps` · processes, in place.

    Args:
        values: settings by name; `global_batch` is None where neither typed nor kept.
        typed: the flags that were typed.
        kept: settings of the run that is resumed. Its updates keep their size, whatever the number of processes.
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
