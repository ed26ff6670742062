"""Processes of one run that were given other settings or data than the first one: they would part from it unseen."""

from __future__ import annotations

from typing import Any

from hparams.errors import UserError
from hparams.fields import as_text, settings_of
from hparams.saved import to_flat
from hparams.settings import Stage
from utils.distributed import Ranks

# A matter of each machine, as are places of files.
_OF_MACHINES = frozenset(
    {"device", "num_workers", "dashboard", "visdom_server", "visdom_port", "visdom_base_url", "summary"}
)
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


def require_as_many_images(dataset: str, count: int, ranks: Ranks) -> None:
    """UserError, on every process, unless all find as many images of a data set as the first one."""
    first, *others = ranks.gather_objects(count)
    for rank, found in enumerate(others, start=1):
        if found != first:
            raise UserError(
                f"--dataset {dataset}: rank {rank} finds {found} images, and rank 0 {first}: "
                "give all machines the same data"
            )
