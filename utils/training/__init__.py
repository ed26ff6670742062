"""Training: one update of either stage, and the loop around it.

`training_start`, `run_state`, `training_run`: a run on disk. `vqgan_trainer`, `prior_trainer`: updates and validation.
`trainer`: what both have. `vqgan_step`: the VQGAN's gradients in few passes, and batch normalisation over processes.
`optimiser`: Adam, which skips updates. `bookkeeping`: means, skipped updates, and when processes agree.
"""
