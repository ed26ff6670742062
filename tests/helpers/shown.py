"""What a run folder has to show."""

from __future__ import annotations

from pathlib import Path

from utils.reporting.board import Board, read_settings, replay
from utils.runs.run_folder import RunFolder


def shown(run: Path) -> Board:
    """The panes of a run, read back from its folder; of each picture its step."""
    folder = RunFolder(run.name, run.parent)
    board = Board(read_settings(folder.hparams), lambda pane, step, picture: step)
    replay(folder, board)
    return board


def curve(run: Path, window: str, name: str) -> tuple[list[int], list[float]]:
    """Steps and values of a curve."""
    found = shown(run).curves[window][name]
    return found.x, found.y
