"""Training: the loop's bookkeeping, the two trainers, the optimiser."""
