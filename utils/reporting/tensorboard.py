"""A run in TensorBoard: `tensorboard --logdir logs` shows all runs. Needs the extra `tensorboard`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from utils.reporting.layout import cell
from utils.runs.record import ALL
from utils.runs.run_folder import RunFolder
from utils.runs.sink import Sink


class TensorBoard(Sink):
    """Writes event files to `tensorboard/` in the run folder.

    resume_step: of what is there already, nothing of later steps is shown any more; None: nothing at all.
    """

    def __init__(self, folder: RunFolder, resume_step: int | None) -> None:
        hidden_from = None if resume_step == ALL else 0 if resume_step is None else resume_step + 1
        self._writer = SummaryWriter(folder.path / "tensorboard", purge_step=hidden_from)

    def scalars(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """A curve for each name and split; those of one name stand together."""
        for name, value in values.items():
            self._writer.add_scalar(f"{name}/{split}", value, step)

    def picture(self, step: int | None, name: str, picture: np.ndarray) -> None:
        """A picture of a step, or without one of step 0."""
        self._writer.add_image(name, picture, step or 0)

    def histogram(self, step: int, name: str, values: np.ndarray) -> None:
        """Bars: value i as the height at i."""
        heights, places = np.nan_to_num(values), np.arange(len(values), dtype=np.float64)
        self._writer.add_histogram_raw(
            name,
            min=0.0,
            max=float(len(values)),
            num=float(heights.sum()),
            sum=float(heights @ places),
            sum_squares=float(heights @ places**2),
            bucket_limits=(places + 1).tolist(),
            bucket_counts=heights.tolist(),
            global_step=step,
        )

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """A table in Markdown."""
        lines = [columns, ["---"] * len(columns), *([cell(value) for value in row] for row in rows)]
        self._writer.add_text(name, "\n".join("| " + " | ".join(line) + " |" for line in lines))

    def text(self, name: str, text: str) -> None:
        """Text in Markdown, as it is."""
        self._writer.add_text(name, f"```\n{text}\n```")

    def close(self) -> None:
        """Write what waits."""
        self._writer.close()
