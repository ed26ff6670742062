"""What every experiment does around its own work: read and check its settings, `--dry_run`, a job, results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeVar

from experiments import _packages  # noqa: F401 - first: it refuses packages that are not ours
from hparams.cli import parse
from hparams.saved import describe
from hparams.settings.stages import Stage

if TYPE_CHECKING:
    import numpy as np

    from utils.runs.job import Job
    from utils.runs.results import Value

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
        from utils.runs.job import open_job

        with open_job(settings) as job:
            work(job, settings)

    return main


def show(
    job: Job,
    settings: Stage,
    pictures: Mapping[str, np.ndarray | None],
    result: tuple[Mapping[str, Value], Mapping[str, Value]] | None = None,
) -> None:
    """Record a result, what it depends on and its values, and show it and pictures uint8 [3,H,W]. The first process."""
    from utils.reporting.experiment_panes import ALL, open_dashboard, show_picture, show_results
    from utils.runs.results import record_result

    line = record_result(job.folder.results, *result) if result else None
    with open_dashboard(settings.run, resume_step=ALL if job.metrics_kept else None, warn=job.warn) as dashboard:
        for title, picture in pictures.items():
            if picture is not None:
                show_picture(dashboard, title, picture, title=title)
        if line:
            show_results(dashboard, job.folder.results)
    if line:
        print(line)
