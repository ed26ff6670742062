"""Run folders: what lies where, checkpoints, long work that goes on after an interruption, results."""
