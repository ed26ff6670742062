"""What every experiment does around its own work: read and check its settings, `--dry_run`, a job."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from experiments import _packages  # noqa: F401 - first: it refuses packages that are not ours
from hparams.cli import parse
from hparams.saved import describe
from hparams.settings.stages import Stage

if TYPE_CHECKING:
    from utils.runs.job import Job

StageT = TypeVar("StageT", bound=Stage)


def experiment(
    stage_class: type[StageT],
    work: Callable[[Job, StageT], None],
    *,
    description: str | None,
    example: str,
    check: Callable[[StageT], StageT],
) -> Callable[[], None]:
    """The main function of a script.

    Args:
        stage_class: its settings.
        work: what it does.
        description, example: of `--help`.
        check: finds, before torch is imported, what is missing, and fills in the newest steps.
    """

    def main() -> None:
        settings = check(parse(stage_class, description=description or "", example=example))
        if settings.run.dry_run:
            print(describe(settings))
            return
        # Imported late, so that --help and a refused flag need not wait for torch.
        from utils.reporting.sinks import open_sinks
        from utils.runs.job import open_job

        with open_job(settings, open_sinks) as job:
            work(job, settings)

    return main
