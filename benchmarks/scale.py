"""How large the benchmarks are: `cpu` in ten minutes on two cores, `full` at the published size, `gpu` on CUDA."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """Sizes of what is timed; the Transformer's width, heads, codes and tokens are always the published ones."""

    layers: int  # Transformer blocks, of 24
    sample_layers: int  # where only due places go through the last one: with few, that counts for too much
    sample_batch: int  # images that are sampled together
    evaluations: int  # timed, of T = 256
    rounds: int  # of these, timed in one go: where host and device overlap, one alone says little
    drawn: int  # images that are sampled from start to end; 0: none
    train_batch: int  # images of a prior's step
    grown_batch: int  # images of a step whose growth is measured, where their number does not vary
    wide_batch: int  # and of one that is timed for its utilisation alone; 0: none
    float16_baseline: bool  # the published --amp too; CPUs are slow at it
    repeats: int  # of each step that is timed
    burst: int  # steps that are timed in one go, as above
    ar_batch: int
    ar_every: int  # the prefix is recomputed at every so many of 256 places, and the time scaled
    img_size: int  # of the VQGAN's step
    nf: int  # its width, of 128
    ch_mult: tuple[int, ...]
    vqgan_batch: int
    codes: int  # of the VQGAN's codebook
    neighbour_images: int  # of 10,000, or more
    prdc_points: int
    big_every: int  # windows are counted at every so many of 64×64 places; odd, so that every column comes
    data_images: int


def of_24(layers: int) -> str:
    """What a row with so many layers leaves out, in words."""
    return "" if layers == 24 else f"{layers} of 24 layers"


CPU = Scale(
    layers=6,
    sample_layers=24,
    sample_batch=4,
    evaluations=12,
    rounds=1,
    drawn=0,
    train_batch=20,
    grown_batch=4,
    wide_batch=0,
    float16_baseline=False,
    repeats=5,
    burst=1,
    ar_batch=8,
    ar_every=32,
    img_size=64,
    nf=32,
    ch_mult=(1, 2, 2),
    vqgan_batch=4,
    codes=1024,
    neighbour_images=100,
    prdc_points=10_000,
    big_every=7,
    data_images=200,
)
FULL = Scale(
    layers=24,
    sample_layers=24,
    sample_batch=20,
    evaluations=24,
    rounds=1,
    drawn=0,
    train_batch=20,
    grown_batch=4,
    wide_batch=0,
    float16_baseline=False,
    repeats=5,
    burst=1,
    ar_batch=20,
    ar_every=16,
    img_size=256,
    nf=128,
    ch_mult=(1, 1, 2, 2, 4),
    vqgan_batch=4,
    codes=1024,
    neighbour_images=200,
    prdc_points=10_000,
    big_every=1,
    data_images=1000,
)
GPU = Scale(
    layers=24,
    sample_layers=24,
    sample_batch=256,
    evaluations=30,
    rounds=10,
    drawn=1024,
    train_batch=20,
    grown_batch=32,
    wide_batch=128,
    float16_baseline=True,
    repeats=12,
    burst=5,
    ar_batch=64,
    ar_every=8,
    img_size=256,
    nf=128,
    ch_mult=(1, 1, 2, 2, 4),
    vqgan_batch=4,
    codes=1024,
    neighbour_images=100,
    prdc_points=10_000,
    big_every=7,
    data_images=100,
)
SMOKE = Scale(  # for trying the benchmarks themselves
    layers=1,
    sample_layers=2,
    sample_batch=2,
    evaluations=2,
    rounds=1,
    drawn=3,
    train_batch=2,
    grown_batch=2,
    wide_batch=3,
    float16_baseline=True,
    repeats=1,
    burst=1,
    ar_batch=1,
    ar_every=128,
    img_size=32,
    nf=32,
    ch_mult=(1, 2),
    vqgan_batch=1,
    codes=16,
    neighbour_images=12,
    prdc_points=100,
    big_every=97,
    data_images=20,
)
SCALES = {"cpu": CPU, "full": FULL, "gpu": GPU, "smoke": SMOKE}
