"""Processes of one run that were given other settings or data than the first one: they would part from it unseen."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any

from hparams.errors import UserError
from hparams.fields import as_text, settings_of
from hparams.saved import to_flat
from hparams.settings.stages import Stage
from utils.data.datasets import ImageData
from utils.machine.distributed import Ranks

# A matter of each machine, as are places of files.
_OF_MACHINES = frozenset({"device", "num_workers", "sinks", "visdom_server", "visdom_port", "visdom_base_url"})
_PLACES = ("file", "folder")


def require_same_settings(settings: Stage, ranks: Ranks) -> None:
    """UserError, on every process, unless all have the settings of the first one, but for what is a machine's own."""
    first, *others = ranks.gather_objects(_common(settings))
    known = settings_of(type(settings))
    for rank, theirs in enumerate(others, start=1):
        for name in first:
            own = name in _OF_MACHINES or known[name].unit in _PLACES
            if not own and theirs.get(name) != first[name]:
                raise UserError(
                    f"--{name}: rank {rank} has {as_text(theirs.get(name))}, and rank 0 {as_text(first[name])}: "
                    "start all processes by the same command"
                )


def _common(settings: Stage) -> dict[str, Any]:
    """Saved settings, and the backend: where one process takes gloo, all do, whatever the others were told."""
    return to_flat(settings) | {"dist_backend": settings.run.dist_backend}


def require_same_images(flag: str, splits: Sequence[ImageData], ranks: Ranks) -> None:
    """UserError, on every process, unless all find images of the same names and sizes; see `ImageData.listing`.

    splits: what is read of a data set, which `flag` names.
    """
    if ranks.count == 1:
        return
    own = (socket.gethostname(), sum(map(len, splits)), [images.listing for images in splits])
    (first_host, number, listing), *others = ranks.gather_objects(own)
    differ: dict[str, str] = {}  # a process of each host will do
    for rank, (host, count, theirs) in enumerate(others, start=1):
        if theirs != listing:
            differ.setdefault(host, f"rank {rank} on {host} ({count} images)")
    if differ:
        raise UserError(
            f"{flag}: other names or sizes of files on {', '.join(differ.values())} than on rank 0 on {first_host} "
            f"({number} images): give all machines the same data"
        )
