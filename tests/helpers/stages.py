"""Every script that has a stage of settings."""

from __future__ import annotations

from hparams.settings.experiments import (
    FIDExperiment,
    InpaintingExperiment,
    LargerExperiment,
    LikelihoodExperiment,
    NeighboursExperiment,
    PRDCExperiment,
    ReconstructionExperiment,
    SamplesExperiment,
)
from hparams.settings.stages import PriorStage, Stage, VQGANStage

STAGES: dict[str, type[Stage]] = {
    "train_vqgan.py": VQGANStage,
    "train_sampler.py": PriorStage,
    "experiments/get_samples.py": SamplesExperiment,
    "experiments/calc_FID.py": FIDExperiment,
    "experiments/calc_PRDC.py": PRDCExperiment,
    "experiments/calc_VQGAN_FID.py": ReconstructionExperiment,
    "experiments/calc_approximate_ELBO.py": LikelihoodExperiment,
    "experiments/calc_nearest_neighbours.py": NeighboursExperiment,
    "experiments/generate_big_samples.py": LargerExperiment,
    "experiments/inpaint.py": InpaintingExperiment,
}
