"""Every script that has a stage of settings."""

from __future__ import annotations

from hparams.settings import experiments
from hparams.settings.stages import PriorStage, Stage, VQGANStage

STAGES: dict[str, type[Stage]] = {
    "train_vqgan.py": VQGANStage,
    "train_sampler.py": PriorStage,
    "experiments/get_samples.py": experiments.SamplesExperiment,
    "experiments/calc_FID.py": experiments.FIDExperiment,
    "experiments/calc_PRDC.py": experiments.PRDCExperiment,
    "experiments/calc_VQGAN_FID.py": experiments.ReconstructionExperiment,
    "experiments/calc_approximate_ELBO.py": experiments.LikelihoodExperiment,
    "experiments/calc_nearest_neighbours.py": experiments.NeighboursExperiment,
    "experiments/generate_big_samples.py": experiments.LargerExperiment,
    "experiments/inpaint.py": experiments.InpaintingExperiment,
}
