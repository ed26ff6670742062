from __future__ import annotations

from pathlib import Path

import pytest

from hparams.fields import Setting, as_text, from_text, settings_of
from hparams.presets import ALL, DATASETS, TABLES
from hparams.resolve import resolve
from hparams.settings.stages import PriorStage, Stage, VQGANStage
from stages import STAGES


def allowed(setting: Setting, value: object) -> bool:
    """Whether the flag would accept the value."""
    if setting.kind is bool:
        return isinstance(value, bool)
    values = value if isinstance(value, tuple) else (value,)
    return all(type(item) is setting.kind and from_text(setting, as_text(item)) == item for item in values)


@pytest.mark.parametrize("stage_class", STAGES.values(), ids=STAGES)
def test_tables_hold_settings_of_the_stage_and_values_are_allowed(stage_class: type[Stage]) -> None:
    settings = settings_of(stage_class)
    for table in (TABLES[name] for name in stage_class.preset_tables):
        assert set(table) <= {ALL, *DATASETS}
        assert all(allowed(settings[key], value) for row in table.values() for key, value in row.items())
    assert all(setting.default is None or allowed(setting, setting.default) for setting in settings.values())


def test_every_table_belongs_to_a_stage() -> None:
    assert {name for stage in STAGES.values() for name in stage.preset_tables} == set(TABLES)


@pytest.mark.parametrize("dataset", ["churches", "bedrooms", "ffhq", "custom"])
def test_published_vqgan(dataset: str, tmp_path: Path) -> None:
    stage = resolve(VQGANStage, {"dataset": dataset}, logs=tmp_path)
    a, v, t = stage.autoencoder, stage.vqgan, stage.training
    assert (a.img_size, a.nf, a.ch_mult, a.res_blocks, a.attn_resolutions) == (256, 128, (1, 1, 2, 2, 4), 2, (16,))
    assert (a.codebook_size, a.emb_dim, a.latent_shape, a.beta) == (1024, 256, (1, 16, 16), 0.25)
    assert (v.ndf, v.disc_layers, v.disc_start_step, v.disc_weight_max) == (64, 3, 30001, 1.0)
    assert (v.perceptual, v.perceptual_weight, v.codebook_init, v.restart_dead_codes) == ("lpips", 1.0, "uniform", 0)
    assert (stage.run.batch_size, t.train_steps, t.lr) == (3, 2_200_000, pytest.approx(4.5e-6 * 3))


@pytest.mark.parametrize("sampler", ["absorbing", "autoregressive"])
@pytest.mark.parametrize(
    ("dataset", "lr", "warmup"),
    [("churches", 2e-4, 10_000), ("bedrooms", 2e-4, 10_000), ("ffhq", 1e-4, 30_000), ("custom", 1e-4, 30_000)],
)
def test_published_prior(dataset: str, lr: float, warmup: int, sampler: str, tmp_path: Path) -> None:
    stage = resolve(PriorStage, {"dataset": dataset, "sampler": sampler, "ae_load_dir": "ae"}, logs=tmp_path)
    p = stage.prior
    assert (p.bert_n_emb, p.bert_n_head, p.bert_n_layers, p.block_size, p.total_steps) == (512, 8, 24, 256, 256)
    assert (p.attn_pdrop, p.embd_pdrop, p.resid_pdrop) == (0, 0, 0)
    assert (p.loss_type, p.mask_schedule, p.warmup_iters) == ("reweighted_elbo", "random", warmup)
    assert (stage.training.lr, stage.run.batch_size, stage.training.train_steps) == (lr, 20, 2_000_000)
    assert (stage.sampling.sample_steps, stage.run.log_dir) == (256, f"{sampler}_{dataset}")


def test_toy_churches_needs_no_download_and_has_8x8_codes(tmp_path: Path) -> None:
    first = resolve(VQGANStage, {"dataset": "toy_churches"}, logs=tmp_path)
    assert (first.autoencoder.img_size, first.autoencoder.latent_shape) == (32, (1, 8, 8))
    assert (first.vqgan.perceptual, first.vqgan.codebook_init) == ("none", "encoder")
    assert first.vqgan.restart_dead_codes > 0
    second = resolve(PriorStage, {"dataset": "toy_churches", "ae_load_dir": "ae"}, logs=tmp_path)
    assert (second.autoencoder, second.prior.block_size) == (first.autoencoder, 64)
