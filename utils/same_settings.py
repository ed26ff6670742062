"""Processes of one run that were given other settings than the first one: they would part from it unseen."""

from __future__ import annotations

from hparams.errors import UserError
from hparams.fields import as_text, settings_of
from hparams.saved import to_flat
from hparams.settings import Stage
from utils.distributed import Ranks

# A matter of each machine, as are places of files.
_OF_MACHINES = frozenset({"device", "num_workers", "visdom_server", "visdom_port", "summary"})
_PLACES = ("file", "folder")


def require_same_settings(settings: Stage, ranks: Ranks) -> None:
    """UserError, on every process, unless all have the settings of the first one, but for what is a machine's own."""
    first, *others = ranks.gather_objects(to_flat(settings))
    known = settings_of(type(settings))
    for rank, theirs in enumerate(others, start=1):
        for name in first:
            own = name in _OF_MACHINES or known[name].unit in _PLACES
            if not own and theirs.get(name) != first[name]:
                raise UserError(
                    f"--{name}: rank {rank} has {as_text(theirs.get(name))}, and rank 0 {as_text(first[name])}: "
                    "start all processes by the same command"
                )
