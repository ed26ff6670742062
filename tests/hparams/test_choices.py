"""What a flag may be is what the mathematics knows, which imports no settings: neither says more than the other."""

from __future__ import annotations

from hparams.fields import settings_of
from hparams.settings.experiments import LargerExperiment, LikelihoodExperiment
from hparams.settings.stages import PriorStage, VQGANStage
from models.prior.bounds import CODE_BOUNDS
from models.prior.diffusion import LOSS_TYPES, MASK_SCHEDULES, REWEIGHTINGS
from models.sampling.larger import ORDERS
from models.sampling.samplers import SAMPLERS
from models.vqgan.quantizers import BETA_TERMS
from utils.pretrained.building import PRIORS, QUANTIZERS
from utils.runs.run_folder import KINDS, VQGAN


def test_a_flag_and_the_mathematics_know_the_same() -> None:
    for stage, flag, known in (
        (VQGANStage, "quantizer", QUANTIZERS),
        (VQGANStage, "beta_term", BETA_TERMS),
        (PriorStage, "sampler", [kind for kind in KINDS if kind != VQGAN]),
        (PriorStage, "sampler", PRIORS),
        (PriorStage, "loss_type", LOSS_TYPES),
        (PriorStage, "reweighting", REWEIGHTINGS),
        (PriorStage, "mask_schedule", MASK_SCHEDULES),
        (PriorStage, "sample_type", SAMPLERS),
        (LikelihoodExperiment, "code_bound", CODE_BOUNDS),
        (LargerExperiment, "order", ORDERS),
    ):
        assert settings_of(stage)[flag].choices == tuple(known), flag
