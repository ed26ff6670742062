"""Plants small mistakes in the code, one at a time, and tells whether the tests notice: `make mutants`.

`.venv/bin/python tests/mutants.py warm-up hinge` tries those whose names hold one of the words. Each mistake goes into
a copy of the tree, which the tests then import. The exit status is 1 if the tests pass in spite of a mistake that is
not marked as a known gap, and 2 if nothing can be said.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("experiments", "hparams", "models", "utils")
NOT_COPIED = {".git", ".venv", "logs", "data", "build", ".hypothesis", ".mypy_cache", ".pytest_cache", ".ruff_cache"}

# Two lines each: what the mistake is, and the test files that should notice it; then what it changes, somewhere in the
# source, into what. A space stands for any white space. A ! marks a known gap, which no test notices.
TABLE = r"""
the ELBO weight loses its 1/t | test_diffusion.py
    per_token * total_steps / t  =>  per_token * total_steps
the bound is in nats, not bits | test_diffusion.py
    cross_entropy / (math.log(2) * mask.shape[1])  =>  cross_entropy / mask.shape[1]
a token is revealed with probability 1/(s + 1) | test_samplers.py
    < 1 / s)  =>  < 1 / (s + 1))
a draw on the edge of two codes takes the lower one | test_categorical.py
    target.unsqueeze(-1), right=True)  =>  target.unsqueeze(-1), right=False)
a draw may be K, which is the mask | test_categorical.py
    ids.clamp(max=p.shape[-1] - 1)  =>  ids.clamp(max=p.shape[-1])
the adaptive weight is upside down | test_vqgan.py
    return ratio.clamp(0.0, max_weight)  =>  return ratio.reciprocal().clamp(0.0, max_weight)
the hinge pushes fakes up | test_vqgan.py
    F.relu(1.0 + logits_fake.float())  =>  F.relu(1.0 - logits_fake.float())
beta weighs the other term | test_quantizers.py
    full + self.beta * weighed  =>  self.beta * full + weighed
the Gumbel KL forgets log K | test_quantizers.py
    torch.log(q * self.size + 1e-10)  =>  torch.log(q + 1e-10)
images never move as far to the right as to the left | test_augment.py
    noise.integers(-reach, reach + 1,  =>  noise.integers(-reach, reach,
rows and columns of the codes are swapped | test_quantizers.py
    unflatten(1, tuple(size)).permute(0, 3, 1, 2)  =>  unflatten(1, tuple(size)).permute(0, 3, 2, 1)
a place attends to the one after it | test_kernels.py
    .tril(m - n)  =>  .tril(m - n + 1)
the autoregressive prior sees the token that it predicts | test_transformer.py
    self.net.next_logits(x[:, :-1])  =>  self.net.next_logits(x[:, 1:])
no window covers the end of a larger image | test_larger.py
    stride), length - window})  =>  stride)})
the average follows at step 0 | test_ema.py
    if step > 0 and step % self._every == 0:  =>  if step % self._every == 0:
a resumed run leaves out a batch | test_batches.py
    count(start_step)  =>  count(start_step + (start_step > 0))
the quantiser's loss misses the loss scale | test_vqgan_step.py
    quantized.loss * scale / self._count  =>  quantized.loss / self._count
accumulated gradients are not divided | test_spread.py
    scale(both[0].mean() / self.micro_batches)  =>  scale(both[0].mean())
the warm-up is a step ahead | test_prior_trainer.py
    step / warmup_iters)  =>  (step + 1) / warmup_iters)
steps are saved one late | test_training_run.py
    bool(every) and done % every == 0  =>  bool(every) and done > 1 and (done - 1) % every == 0
every step draws the same times and masks | test_trainers.py
    reseed(self._generator, self.seed, "prior", step)  =>  reseed(self._generator, self.seed, "prior")
! dropout is the same on all processes | test_spread.py test_trainers.py
    *([self.ranks.rank] if self.ranks.rank else [])  =>
the learning rate of a loaded optimiser wins over --lr | test_optimiser.py
    {**own, "params": ids}  =>  {**own, "lr": state["param_groups"][0].get("lr", 1.0), "params": ids}
training and validation images are swapped | test_datasets.py
    part[:train] if split == "train"  =>  part[:train] if split != "train"
all epochs have the same order | test_batches.py
    default_rng([self.seed, epoch])  =>  default_rng([self.seed])
the centre crop is off by one pixel | test_images.py
    round((new_size[0] - size) / 2)  =>  (new_size[0] - size) // 2
colours are blue, green, red | test_images.py
    pixels.transpose(2, 0, 1)  =>  pixels[..., ::-1].transpose(2, 0, 1)
a packed folder's validation part begins at its first image | test_pack_images.py
    self._store.read(self._part[i])  =>  self._store.read(i)
one image stands in for all that cannot be read | test_batches.py
    derive_seed("stand-in", i, attempt)  =>  derive_seed("stand-in", attempt)
files are renamed without being flushed to disk | test_disk_faults.py
    yield file file.flush() os.fsync(file.fileno())  =>  yield file; file.flush()
files are written over, not renamed | test_disk_faults.py
    temporary.replace(path) sync(path.parent)  =>  path.write_bytes(temporary.read_bytes())
a model file's checksum is not looked at | test_checkpoints.py
    expected["size"] or sha256_of(file) != expected["sha256"]  =>  expected["size"]
the newest training states are deleted | test_run_folder.py
    for step in whole[:-states])  =>  for step in whole[states:])
results.json keeps only the newest entry | test_record.py
    if entry["conditions"] != dict(conditions)  =>  if not entry
kept features do not depend on the network's weights | test_feature_sources.py
    (kind, data.fingerprint, extractor.name, extractor.weights)  =>  (kind, data.fingerprint, extractor.name)
covariances are divided by n | test_fid.py
    np.outer(total, total) / n) / (n - 1)  =>  np.outer(total, total) / n) / n
radii reach to neighbour k + 1 | test_prdc.py
    squared.sort(1).values[:, k - 1]  =>  squared.sort(1).values[:, k]
neighbours are numbered from 1 | test_neighbours.py
    torch.arange(first, first + len(embeddings),  =>  torch.arange(first + 1, first + 1 + len(embeddings),
saved settings win over typed flags | test_resolve.py
    chosen = {**kept, **typed}  =>  chosen = {**typed, **kept}
heads need not divide the width | test_checks.py
    if prior.bert_n_emb % prior.bert_n_head:  =>  if prior.bert_n_emb < prior.bert_n_head:
a process leaves out its last thing | test_prdc.py
    range(self.rank, n, self.count)  =>  range(self.rank, n - (self.count > 1), self.count)
means over processes are sums | test_spread.py
    self.sum(tensor / self.count)  =>  self.sum(tensor)
every process reads the first one's images | test_torchrun.py
    np.split(whole, self.part.count)[self.part.index]  =>  np.split(whole, self.part.count)[0]
metrics are logged one step early | test_training_run.py
    self._record.scalars(done, TRAIN,  =>  self._record.scalars(done - 1, TRAIN,
curves are means since the run's start | test_bookkeeping.py
    self._sums, self._counts = {}, Counter() scalars  =>  scalars
a user's mistake exits with 1 | test_script.py
    status = 2 if isinstance(error, UserError)  =>  status = 1 if isinstance(error, UserError)
"""


class Mutant(NamedTuple):
    """A mistake: `old` becomes `new`, which one of `tests`, names of files, should notice."""

    name: str
    tests: list[str]
    old: str
    new: str
    survives: bool

    def planted(self, root: Path) -> tuple[Path, str]:
        """The file below `root` that holds `old`, and that with the mistake. ValueError unless it is there once."""
        pattern = re.compile(r"\s+".join(map(re.escape, self.old.split())))
        files = [*root.glob("train_*.py"), *(file for name in PACKAGES for file in (root / name).rglob("*.py"))]
        found = [(file, match) for file in files for match in pattern.finditer(file.read_text())]
        if len(found) != 1:
            raise ValueError(f"{self.name}: {self.old!r} is found in {[str(file) for file, _ in found]}, not once")
        ((file, match),) = found
        text = match.string[: match.start()] + self.new + match.string[match.end() :]
        compile(text, file, "exec")  # an error of syntax would be noticed without any test
        return file, text


def mutants() -> Iterator[Mutant]:
    """Those of the table."""
    lines = iter(TABLE.strip().splitlines())
    for head, change in zip(lines, lines, strict=True):
        name, tests = head.removeprefix("! ").split(" | ")
        old, new = change.split("  =>")
        yield Mutant(name, tests.split(), old.strip(), new.strip(), head.startswith("!"))


def copy_tree(folder: Path) -> Path:
    """A copy of the working tree in a new folder."""
    return shutil.copytree(
        ROOT, folder / "tree", ignore=lambda at, _: NOT_COPIED if at == str(ROOT) else {"__pycache__"}
    )


def run_tests(copy: Path, chosen: list[Mutant]) -> tuple[int, str]:
    """pytest's status for the tests of some mistakes, and the first test that failed or else its last line."""
    names = {name for mutant in chosen for name in mutant.tests}
    files = [file for file in (copy / "tests").rglob("test_*.py") if file.name in names]
    if missing := names - {file.name for file in files}:
        raise ValueError(f"there is no test file {', '.join(missing)}")
    options = ["-x", "-q", "-p", "no:cacheprovider", f"--basetemp={copy.parent / 'tests'}"]
    # Before the editable install, in any folder.
    env = os.environ | {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    command = ["timeout", "--kill-after=9", "1800", sys.executable, "-m", "pytest", *options, *sorted(files)]
    done = subprocess.run(command, cwd=copy, env=env, capture_output=True, text=True)
    said = (done.stdout + done.stderr).strip() or "no end"
    failed = re.search(r"^(?:FAILED|ERROR) (?:\S*/)?(.*)", said, re.MULTILINE)
    return done.returncode, failed[1] if failed else said.splitlines()[-1]


def try_out(mutant: Mutant, folder: Path) -> str:
    """What became of a mistake: killed, SURVIVED, or UNCLEAR, as where tests cannot be collected; after which time."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as name:
        copy = copy_tree(Path(name))
        file, text = mutant.planted(copy)
        file.write_text(text)
        status, line = run_tests(copy, [mutant])
    end = {0: "SURVIVED", 1: "killed"}.get(status, "UNCLEAR") + " (a known gap)" * mutant.survives
    return f"{end} {time.monotonic() - began:4.0f} s  {mutant.name}: {line}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="NAME-PART", help="only mistakes whose name holds one of these")
    parts = parser.parse_args().parts or [""]
    chosen = [mutant for mutant in mutants() if any(part in mutant.name for part in parts)]
    with tempfile.TemporaryDirectory(prefix="mutants_", ignore_cleanup_errors=True) as name:
        folder = Path(name).resolve()
        try:
            for mutant in chosen:
                mutant.planted(ROOT)
            status, line = run_tests(copy_tree(folder / "whole"), chosen)
            print(f"without a mistake: {line}", flush=True)
            if status:
                raise ValueError("the tests fail without a mistake")
        except (SyntaxError, ValueError) as error:
            print(f"mutants.py: error: {error}", file=sys.stderr)
            return 2
        unnoticed = 0
        with ThreadPoolExecutor(2) as pool:
            for line in pool.map(partial(try_out, folder=folder), chosen):
                print(line, flush=True)
                unnoticed += not line.startswith("killed") and "(a known gap)" not in line
    print(f"{len(chosen)} mistakes, {unnoticed} of them unnoticed where a test should notice")
    return int(unnoticed > 0)


if __name__ == "__main__":
    sys.exit(main())
