"""What happens on a CUDA device, or, where there is none, on an emulated one."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import emulated_cuda
import numpy as np
import pytest
import torch
from torch import Tensor

import trainers
from models.kernels import GELU
from models.prior.prior import Codes, Draws
from models.sampling.rounds import Drawing
from utils.machine.cuda_graphs import EAGER_CALLS, Captured
from utils.machine.devices import rows
from utils.machine.evaluation import evaluating
from utils.machine.seeding import make_generator
from utils.runs.logged import read_metrics
from utils.training.prior_trainer import PriorTrainer
from utils.training.vqgan_trainer import VQGANTrainer

AVAILABLE = torch.cuda.is_available()
needs_cuda = pytest.mark.skipif(not AVAILABLE, reason="needs a CUDA device")
ROOT = Path(__file__).parents[1]
K, N = 64, 64
SAMPLERS = ["absorbing", "autoregressive"]


def prior_trainer(device: str = "cuda", amp_dtype: torch.dtype | None = None, **changes: Any) -> PriorTrainer:
    sizes = {"codebook_size": K, "bert_n_emb": 64, "bert_n_layers": 2, "total_steps": 16}
    return trainers.prior_trainer(amp_dtype, device=device, **sizes | {"lr": 1e-3, "warmup_iters": 4} | changes)


def vqgan_trainer(device: str = "cuda", amp_dtype: torch.dtype | None = None, **changes: Any) -> VQGANTrainer:
    sizes = {"img_size": 32, "attn_resolutions": (16,), "emb_dim": 8, "disc_layers": 2}
    return trainers.vqgan_trainer(amp_dtype, device=device, **sizes | {"lr": 1e-4, "disc_start_step": 6} | changes)


def codes(step: int, device: str = "cuda") -> Tensor:
    return torch.randint(8, (8, N), generator=torch.Generator().manual_seed(step)).to(device)


def images(step: int) -> Tensor:
    coarse = torch.rand((4, 3, 4, 4), generator=torch.Generator().manual_seed(step))
    return (255 * torch.nn.functional.interpolate(coarse, 32, mode="bilinear")).byte()


@pytest.fixture(autouse=True)
def device(request: pytest.FixtureRequest) -> None:
    if not AVAILABLE:
        request.getfixturevalue("cuda")


@pytest.fixture
def not_compiled(no_code: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """--compile on captures graphs; here of the layers as they are."""
    monkeypatch.setattr("utils.training.prior_trainer.compile_blocks", lambda *_: None)
    monkeypatch.setattr("utils.training.vqgan_trainer.compile_blocks", lambda *_: None)


@contextmanager
def without_waiting() -> Iterator[None]:
    if not AVAILABLE:
        with emulated_cuda.without_waiting():
            yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_replayed_function_goes_on_as_an_eager_one() -> None:
    """State changed in place, random numbers of both kinds, and inputs of two shapes."""

    def outcome(captured: bool) -> list[Tensor]:
        state, generator = torch.zeros(3, device="cuda"), torch.Generator("cuda")

        def step(x: Tensor) -> dict[str, Tensor]:
            state.add_(x.mean()).add_(torch.rand(3, generator=generator, device="cuda"))
            return {"sum": state * 2, "noise": torch.rand(2, device="cuda")}

        call = Captured(step, [generator]) if captured else step
        found = []
        for number in range(4 * EAGER_CALLS):
            torch.manual_seed(number)
            generator.manual_seed(100 + number)
            out = call(torch.full((4 if number % 3 else 5,), float(number), device="cuda"))
            found += [out["sum"], out["noise"], state.clone()]
        return found

    assert all(map(torch.equal, outcome(True), outcome(False)))


@pytest.mark.parametrize(
    "problem", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("CUBLAS_STATUS_ALLOC_FAILED")]
)
def test_what_ends_a_capture_is_told(problem: RuntimeError) -> None:
    """By the line about memory; PyTorch's last word is that an earlier error made the capture fail."""
    calls = itertools.count()

    def step(x: Tensor) -> Tensor:
        if next(calls) == EAGER_CALLS:
            raise problem
        return x + 1

    call, x = Captured(step), torch.ones(2, device="cuda")
    for _ in range(EAGER_CALLS):
        call(x)
    with pytest.raises(type(problem), match=str(problem)):
        call(x)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("amp_dtype", [None, torch.bfloat16])
def test_the_prior_learns_the_same_by_graph(sampler: str, amp_dtype: torch.dtype | None, not_compiled: None) -> None:
    """Also with another's graph from halfway on. With dropout: also its random numbers are the same."""
    changes = {"sampler": sampler, "attn_pdrop": 0.1, "resid_pdrop": 0.1, "embd_pdrop": 0.1}
    graph, resumed, eager = (
        prior_trainer(amp_dtype=amp_dtype, compile=choice, **changes) for choice in ("on", "on", "off")
    )
    for step in range(12):
        got, expected = (trainer.step(codes(step), step) for trainer in (graph, eager))
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6, equal_nan=True)
        if step == 4:
            trainers.go_on(resumed, graph)
        elif step > 4:
            resumed.step(codes(step), step)
    for found in (graph, resumed):
        torch.testing.assert_close(trainers.state_of(found), trainers.state_of(eager), rtol=1e-4, atol=1e-6)


def take_over(trainer: VQGANTrainer, other: VQGANTrainer) -> None:
    """Weights and moments of another trainer, where graphs look for them."""
    for mine, theirs in ((trainer.vqgan, other.vqgan), (trainer.averaged, other.averaged)):
        mine.load_state_dict(theirs.state_dict())
    for name, optimiser in trainer.optimisers.items():
        states = (each.adam.state.values() for each in (optimiser, other.optimisers[name]))
        for mine, theirs in zip(*states, strict=True):
            for key, value in theirs.items():
                mine[key].copy_(value)


@pytest.mark.parametrize(("amp_dtype", "rtol", "atol"), [(None, 1e-3, 1e-4), (torch.bfloat16, 0.05, 1e-3)])
def test_the_vqgan_learns_the_same_by_graph(
    amp_dtype: torch.dtype | None, rtol: float, atol: float, not_compiled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the start of its discriminator, with DiffAugment's random numbers.

    Two steps at a time: weights that differ by 1e-7 of themselves move the generator's loss by 0.003 within 14 steps.
    """
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    graph, eager = (vqgan_trainer(amp_dtype=amp_dtype, compile=choice, diff_aug=True) for choice in ("on", "off"))
    for step in range(14):
        if step % 2 == 0:
            take_over(graph, eager)
        got, expected = (trainer.step(images(step), step) for trainer in (graph, eager))
        assert got.keys() == expected.keys()
        for name in {"l1", "g_loss", "d_loss", "disc_weight"} & expected.keys():
            torch.testing.assert_close(got[name], expected[name], rtol=rtol, atol=atol)
        buffers = (list(trainer.vqgan.buffers()) for trainer in (graph, eager))
        torch.testing.assert_close(*buffers, rtol=rtol, atol=atol)


@pytest.mark.parametrize("devices", [("cpu", "cuda"), ("cuda", "cpu")])
def test_a_vqgan_goes_on_on_another_device(devices: tuple[str, str]) -> None:
    """Where its convolutions lie otherwise in memory, and so must their moments."""
    first, second = (vqgan_trainer(device, compile="off") for device in devices)
    for step in range(8, 12):
        first.step(images(step), step)
    trainers.go_on(second, first)
    before = second.vqgan.ae.generator.last_layer.detach().cpu().clone()
    moved = []
    for trainer in (first, second):
        trainer.step(images(12), 12)
        moved.append(trainer.vqgan.ae.generator.last_layer.detach().cpu() - before)
    assert torch.dist(*moved) < 0.1 * moved[0].norm()  # CUDA's convolutions round to TF32


@needs_cuda
def test_gelu_compiled_in_half_precision() -> None:
    x = torch.linspace(-8, 8, 5000, device="cuda").bfloat16()
    found, expected = torch.compile(GELU())(x), torch.nn.functional.gelu(x.double())
    torch.testing.assert_close(found.double(), expected, rtol=2**-7, atol=1e-7)


@needs_cuda
def test_both_stages_learn_compiled() -> None:
    stages = ((prior_trainer, codes, "loss", 1e-4, 1e-6), (vqgan_trainer, images, "l1", 0.05, 1e-3))
    for make, batch, name, rtol, atol in stages:
        compiled, eager = (make(compile=choice) for choice in ("on", "off"))
        for step in range(12):
            got, expected = (trainer.step(batch(step), step)[name] for trainer in (compiled, eager))
            torch.testing.assert_close(got, expected, rtol=rtol, atol=atol)


def test_training_never_waits(not_compiled: None) -> None:
    prior, vqgan = prior_trainer(compile="on"), vqgan_trainer(compile="on", disc_start_step=0)
    ids, pixels = codes(0), images(0).cuda()
    for step in range(1, 4 + EAGER_CALLS):
        prior.step(ids, step)
        vqgan.step(pixels, step + 1)
    with without_waiting():
        prior.step(rows(ids, np.arange(len(ids))), 9)
        vqgan.step(pixels, 9)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_losses_and_samples_are_those_of_a_cpu(sampler: str) -> None:
    """Nearly: rounding moves a draw now and then, and what follows from it. On CUDA the batch is halved at the end."""
    t = torch.randint(1, 17, (8,), generator=make_generator("cpu", 0))
    mask = torch.rand((8, N), generator=make_generator("cpu", 1)) < t[:, None] / 16
    losses, samples = [], []
    for device in ("cpu", "cuda"):
        prior = prior_trainer(device, sampler=sampler, compile="off").prior
        prior.load_state_dict(prior_trainer("cpu", sampler=sampler).prior.state_dict())
        draws = Draws(t.to(device), mask.to(device)) if sampler == "absorbing" else None
        losses.append(prior.losses(Codes(codes(0, device)), draws).loss.cpu())
        generators = (make_generator("cpu", "samples", index) for index in range(20))
        drawing = Drawing(8, wrap=Captured if device == "cuda" else None)
        with evaluating(prior):
            samples.append(torch.stack(list(prior.samples(generators, drawing))).cpu())
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-6)
    assert (samples[0] == samples[1]).float().mean() > 0.97


def test_a_halved_batch_is_replayed_as_one_is_run() -> None:
    """Its graphs share memory, and are replayed in turns with the first batch's."""
    prior = prior_trainer(compile="off").prior
    rounds: list[int] = []
    agreeing: list[float] = []

    def counting(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        call = Captured(function)

        def counted(x: Tensor, *inputs: Tensor) -> Tensor:
            rounds.append(len(x))
            found = call(x, *inputs)
            agreeing.append((found == function(x, *inputs)).float().mean().item())
            return found

        return counted

    generators = [make_generator("cpu", "samples", index) for index in range(10)]
    with evaluating(prior):
        assert len(list(prior.samples(generators, Drawing(8, wrap=counting)))) == 10
    assert min(rounds.count(8), rounds.count(2)) > EAGER_CALLS
    assert rounds == sorted(rounds, reverse=True)
    assert min(agreeing) > 0.97


def test_sampling_never_waits(not_compiled: None) -> None:
    prior = prior_trainer(compile="on").prior
    generators = [make_generator("cpu", "samples", index) for index in range(20)]
    with evaluating(prior):
        samples = prior.samples(generators, Drawing(4, wrap=Captured))
        first = next(samples)  # by then the round is captured
        with without_waiting():
            rest = list(itertools.islice(samples, 8))
    assert torch.stack([first, *rest]).max() < K


TRAINING = "--dataset toy_churches --toy_images 96 --img_size 32"


def run(folder: Path, command: str, processes: int) -> str:
    launcher = f"-m torch.distributed.run --standalone --nproc_per_node={processes}" if processes > 1 else ""
    words = f"{launcher} {ROOT}/{command} --batch_size 8 --amp --visdom_port 9".split()
    done = subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@needs_cuda
def test_the_scripts(tmp_path: Path) -> None:
    """Both stages, samples and their FID, on CUDA with --amp; then the same on two processes that share the GPU."""
    for processes in (1, 2):
        vqgan, prior = f"{processes}/vqgan", f"{processes}/prior"
        stage_1 = f"train_vqgan.py --log_dir {vqgan} {TRAINING} --train_steps 12 --disc_start_step 4 --compile off"
        run(tmp_path, stage_1, processes)
        stage_2 = f"train_sampler.py --log_dir {prior} --ae_load_dir {vqgan} {TRAINING} --train_steps 12"
        assert "cuda" in run(tmp_path, stage_2, processes)
        measured = f"experiments/calc_FID.py --load_dir {prior} --log_dir {processes}/fid --n_samples 40"
        assert "fid" in run(tmp_path, f"{measured} --kid_subsets 0", processes)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_gpus_learn_the_same_by_graph(tmp_path: Path) -> None:
    """With --compile on, NCCL's messages are part of the replayed steps."""
    stages = {"vqgan": "train_vqgan.py --disc_start_step 20", "prior": "train_sampler.py --ae_load_dir on/vqgan"}
    for stage, command in stages.items():
        losses = []
        for choice in ("on", "off"):
            flags = f"{TRAINING} --train_steps 40 --steps_per_log 1 --compile {choice} --log_dir {choice}/{stage}"
            run(tmp_path, f"{command} {flags}", 2)
            lines = read_metrics(tmp_path / f"logs/{choice}/{stage}/metrics.jsonl")
            losses.append([line["loss"] for line in lines if "loss" in line])
        assert losses[0] == pytest.approx(losses[1], rel=0.05)
