"""What differs from the defaults in ``hparams.settings``, by stage and data set.

Each table has a row for all data sets, and further rows where a data set differs. A stage names its tables, and a later
one wins. Sizes of networks stand apart from how they are trained, because experiments need only the sizes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from hparams.fields import settings_of
from hparams.settings.data import FolderDataset
from hparams.settings.stages import VQGANStage

Row = Mapping[str, Any]
DATASETS: tuple[str, ...] = settings_of(VQGANStage)["dataset"].choices
FOLDERS: tuple[str, ...] = get_args(FolderDataset)
ALL = "all"  # the row below the data set's own

# Training settings that presets named only after runs had been made with them. A run whose file lacks one had its
# default, and keeps it when it is resumed.
ADDED_TO_PRESETS = ("ema_warmup",)

# fmt: off
# Small enough that both stages train in minutes on two CPU cores: 32x32 scenes, 8x8 codes out of 256.
_TOY_AUTOENCODER: Row = {
    "img_size": 32, "nf": 32, "ch_mult": (1, 2, 2), "res_blocks": 1, "attn_resolutions": (8,), "codebook_size": 256,
    "emb_dim": 32,
}
_TOY_TRAINING: Row = {
    "train_steps": 1100, "batch_size": 32, "lr": 1e-3, "steps_per_update_ema": 1, "ema_warmup": True,
    "steps_per_log": 50, "steps_per_checkpoint": 550, "steps_per_eval": 550,
    "steps_per_display_output": 550, "steps_per_save_output": 550,
    "num_workers": 0,  # small scenes are read faster than they are handed from process to process
}
_TOY_VQGAN_TRAINING: Row = {
    **_TOY_TRAINING, "ema_beta": 0.98, "perceptual": "none", "ndf": 32, "disc_layers": 2, "disc_start_step": 850,
    "disc_weight_max": 0.02,  # at this learning rate a stronger adversary ruins the codebook within 100 steps
    "codebook_init": "encoder", "restart_dead_codes": 50, "restart_dead_codes_until": 700,
}
# fmt: on
_TOY_PRIOR: Row = {"bert_n_emb": 192, "bert_n_head": 6, "bert_n_layers": 6, "total_steps": 64}
_TOY_PRIOR_TRAINING: Row = {**_TOY_TRAINING, "train_steps": 1650, "ema_beta": 0.99, "warmup_iters": 100}
# Published for faces; folders of the user's own take the careful schedule too.
_SLOW: Row = {"lr": 1e-4, "warmup_iters": 30_000}

TABLES: Mapping[str, Mapping[str, Row]] = {
    "autoencoder": {"toy_churches": _TOY_AUTOENCODER},
    "autoencoder_training": {ALL: {"batch_size": 3, "train_steps": 2_200_000}, "toy_churches": _TOY_VQGAN_TRAINING},
    "prior": {"toy_churches": _TOY_PRIOR},
    "prior_training": {
        ALL: {"batch_size": 20, "lr": 2e-4, "warmup_iters": 10_000, "train_steps": 2_000_000},
        **dict.fromkeys(FOLDERS, _SLOW),
        "toy_churches": _TOY_PRIOR_TRAINING,
    },
    "experiment": {"toy_churches": {"batch_size": 64, "num_workers": 0}},
    # Folders are compared as a whole, LSUN's data sets by their training images, as published.
    "metric": {ALL: {"split": "train"}} | {name: {"split": "all"} for name in FOLDERS},
    "metric_samples": {ALL: {"n_samples": 50_000}, "toy_churches": {"n_samples": 500}},
    "kid": {"toy_churches": {"kid_subset_size": 200}},
    "likelihood": {"toy_churches": {"train_steps": 120, "steps_per_eval": 60, "lr": 1e-3, "elbo_steps": 4}},
    "larger": {ALL: {"n_samples": 4, "temp": 0.8}},  # the temperature as published
    "inpainting": {ALL: {"n_samples": 4}, "custom": {"split": "all"}},  # a folder of few images has none to hold out
    "neighbours": {ALL: {"n_samples": 16}, "toy_churches": {"distance": "r64"}},
    "features": {ALL: {"features": "inception"}, "toy_churches": {"features": "r64"}},
}


def preset(tables: Sequence[str], dataset: str) -> dict[str, Any]:
    """Values by setting name of the named tables for one data set."""
    values: dict[str, Any] = {}
    for table in (TABLES[name] for name in tables):
        values |= {**table.get(ALL, {}), **table.get(dataset, {})}
    return values
