"""The whole pipeline on small painted churches: train both stages, draw samples, and say what came of it.

The commands that it prints are those of any other data set. A finished part is not done again.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from contextlib import suppress
from typing import Any

from utils.runs.logged import read_metrics
from utils.runs.results import read_results
from utils.runs.run_folder import RunFolder

AUTOENCODER, PRIOR, SAMPLES, SCORES = "demo/vqgan", "demo/absorbing", "demo/samples", "demo/scores"
_BOTH = "--sampler absorbing --dataset toy_churches"

TRAIN_VQGAN = f"train_vqgan.py --dataset toy_churches --log_dir {AUTOENCODER} --amp --ema"
TRAIN_PRIOR = f"train_sampler.py {_BOTH} --log_dir {PRIOR} --ae_load_dir {AUTOENCODER} --amp --ema"
GET_SAMPLES = (
    f"experiments/get_samples.py {_BOTH} --log_dir {SAMPLES} --ae_load_dir {AUTOENCODER} --load_dir {PRIOR} --ema "
    "--n_samples 64 --temp 0.9 --amp"
)
MODELS = f"{_BOTH} --ae_load_dir {AUTOENCODER} --load_dir {PRIOR} --ema"
# Both compare the same 500 samples, which the first one draws, with validation images.
_SCORED = f"{MODELS} --log_dir {SCORES} --n_samples 500 --temp 0.9 --split val --amp"
CALC_FID = f"experiments/calc_FID.py {_SCORED}"
CALC_PRDC = f"experiments/calc_PRDC.py {_SCORED}"
LIKELIHOOD = f"experiments/calc_approximate_ELBO.py {MODELS} --log_dir demo/nll"
NEIGHBOURS = (
    f"experiments/calc_nearest_neighbours.py {MODELS} --log_dir demo/neighbours --n_samples 8 --top_k 7 "
    "--train_images 1000 --temp 0.9 --amp"
)
LARGER = f"experiments/generate_big_samples.py {MODELS} --log_dir demo/big_samples --shape 8 24 --amp"


def main() -> None:
    for command in (TRAIN_VQGAN, TRAIN_PRIOR, GET_SAMPLES, CALC_FID, CALC_PRDC, LIKELIHOOD, NEIGHBOURS, LARGER):
        run(command)
    print(report())


def run(command: str) -> None:
    """Print a command as a user would type it, and run it."""
    print(f"\n$ python3 {command}\n", flush=True)
    process = subprocess.Popen([sys.executable, *shlex.split(command)])
    code = None
    while code is None:
        with suppress(KeyboardInterrupt):  # the command has it too: it saves, and says how to go on
            code = process.wait()
    if code:
        sys.exit(code)


def newest(log_dir: str, metric: str | None = None) -> dict[str, Any]:
    """The newest entry in a run's results, or the newest of a metric: `values`, and the `conditions` of them."""
    results = read_results(RunFolder(log_dir).results)
    return [entry for entry in results if metric in (None, entry["conditions"].get("metric"))][-1]


def report() -> str:
    """Figures and pictures of the finished runs."""
    vqgan, prior, samples = RunFolder(AUTOENCODER), RunFolder(PRIOR), RunFolder(SAMPLES)
    first, lines = ({line["split"]: line for line in read_metrics(run.metrics)} for run in (vqgan, prior))  # the newest
    grid = vqgan.images / f"originals_over_reconstructions_{first['val']['step']}.png"
    psnr, used = first["val"]["psnr_db"], first["val"]["codebook_used"]
    likelihood = newest("demo/nll")["values"]
    fid, prdc = (newest(SCORES, metric)["values"] for metric in ("FID", "PRDC"))
    uniform, marginal = lines["codes"]["log2_codebook_size"], lines["codes"]["marginal_entropy_bits_per_token"]
    return f"""
Validation images, autoencoder:  PSNR {psnr:.2f} dB, {used:.0%} of the codebook in use
Validation codes, prior:         ELBO {lines["val"]["elbo_bits_per_token"]:.3f} bits per token
  to compare with:               log2 K = {uniform:.3f}, entropy of the training codes' frequencies = {marginal:.3f}
Validation images, both stages:  ELBO {likelihood["bits_per_dim"]:.3f} ± {likelihood["standard_error"]:.3f} bits per \
dimension (pixels {likelihood["pixel_bits_per_dim"]:.3f}, codes {likelihood["code_bits_per_dim"]:.3f})

500 samples beside validation images, by features of a random VGG16 (R64):
  FID {fid["fid"]:.3f}, KID {fid["kid"]:.4f}
  precision {prdc["precision"]:.2f}, recall {prdc["recall"]:.2f}
  density {prdc["density"]:.2f}, coverage {prdc["coverage"]:.2f}

Originals over reconstructions:  {grid}
64 samples:                      {samples.images / "samples_000.png"}
Samples, nearest training ones:  {RunFolder("demo/neighbours").images / "neighbours.png"} (of the first \
{newest("demo/neighbours")["conditions"]["training_images"]})
Three times as wide:             {RunFolder("demo/big_samples").images / "samples"}/
Loss curves' numbers:            {vqgan.metrics}
                                 {prior.metrics}
"""


if __name__ == "__main__":
    main()
