"""What shows a run: the visdom dashboard, `summary.png`, and which panes a run has."""
