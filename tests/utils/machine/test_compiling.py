"""Compiled layers compute what they did before, under the same names."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from functools import partialmethod
from pathlib import Path
from typing import Any, cast
from unittest.mock import MagicMock

import pytest
import torch
from small_models import transformer as small_transformer
from torch import nn

from hparams.errors import UserError
from models.prior.absorbing import AbsorbingDiffusion
from models.prior.autoregressive import AutoregressivePrior
from models.prior.prior import Codes, Draws
from models.prior.transformer import Block, Transformer
from models.sampling.rounds import Drawing
from utils.machine import compiling
from utils.machine.compiling import capture_stream, compile_blocks
from utils.machine.cuda_graphs import Captured
from utils.machine.distributed import ALONE, Ranks

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
NCCL = Ranks(0, 2, cast(Any, "gloo"))  # whose other group is gloo's


@pytest.fixture
def traced_only(no_code: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that --compile does but generating code, which takes a minute on a CPU."""
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="aot_eager"))


def transformer(causal: bool) -> Transformer:
    return small_transformer(codebook_size=7, vocab_size=7 if causal else 8, n_head=2, causal=causal)


def compiled(module: nn.Module) -> list[bool]:
    return [block._compiled_call_impl is not None for block in module.modules() if isinstance(block, Block)]


@pytest.mark.parametrize(
    ("choice", "device", "missing", "expected"),
    [
        *[("auto", CPU, None, False), ("off", CPU, None, False)],
        *[("auto", CUDA, "the package triton is missing", False), ("auto", CUDA, None, True)],
    ],
)
def test_auto_compiles_on_cuda_with_a_whole_compiler(choice, device, missing, expected, monkeypatch, traced_only):
    monkeypatch.setattr(compiling, "_missing", lambda device: missing)
    net = transformer(causal=False)
    compile_blocks(net, choice, device)
    assert compiled(net) == [expected] * 2


def test_on_without_a_compiler_or_headers_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Generated code includes Python's headers, which Debian has in a package of its own."""
    monkeypatch.setattr(compiling.sysconfig, "get_path", lambda *_: str(tmp_path))
    for compiler, missing in ((None, r"no C\+\+ compiler"), ("/usr/bin/g++", r"no Python\.h, .* python3-dev\)")):
        monkeypatch.setattr(compiling.shutil, "which", lambda _, compiler=compiler: compiler)
        with pytest.raises(UserError, match=f"--compile on: there is {missing}: install it, or use --compile off"):
            compile_blocks(transformer(causal=False), "on", CPU)


def test_a_compiled_prior_trains_and_samples_as_before(traced_only: None) -> None:
    eager = AbsorbingDiffusion(transformer(causal=False), mask_id=7, total_steps=8)
    prior = copy.deepcopy(eager)
    compile_blocks(prior, "on", CPU)
    assert compiled(prior) == [True, True]
    assert prior.state_dict().keys() == eager.state_dict().keys()
    assert compiled(copy.deepcopy(prior)) == [False, False]  # an average of its own, not the weights of the original
    generator = torch.Generator().manual_seed(0)
    ids, t = torch.randint(7, (3, 6), generator=generator), torch.tensor([2, 5, 8])
    mask = torch.rand((3, 6), generator=generator) < 0.7
    for model in (eager, prior):
        model.losses(Codes(ids), Draws(t, mask)).loss.sum().backward()
    for one, other in zip(eager.parameters(), prior.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    samples = [m.eval().sample(5, generator=generator.manual_seed(1), batch_size=2) for m in (eager, prior)]
    assert torch.equal(*samples)


def test_a_compiled_autoregressive_step_keeps_its_cache(traced_only: None) -> None:
    eager = AutoregressivePrior(transformer(causal=True)).eval()
    prior = copy.deepcopy(eager)
    compile_blocks(prior, "on", CPU)
    uniforms = torch.rand((4, 6), dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    expected = eager.draw_tokens(uniforms, Drawing(4))
    assert torch.equal(prior.draw_tokens(uniforms, Drawing(4, static=True)), expected)


def test_a_halved_batch_takes_no_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before graphs are captured, of which a CPU has none."""
    for name in ("Stream", "current_stream", "graph_pool_handle"):
        monkeypatch.setattr(torch.cuda, name, MagicMock())
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    graphs = []
    net = transformer(causal=False).eval()
    for block in net.blocks:
        block.compile(backend=lambda graph, _: graphs.append(graph) or graph.forward)
    call = Captured(net.logits_at)
    with torch.no_grad():
        for rows, places in ((8, 1), (8, 2), (4, 1), (2, 1), (1, 1), (8, 1)):
            call(torch.zeros((rows, 6), dtype=torch.int64), torch.zeros((rows, places), dtype=torch.int64))
    assert len(graphs) == 1


@pytest.mark.parametrize(
    ("choice", "device", "amp_dtype", "ranks", "expected"),
    [
        *[("auto", CUDA, torch.bfloat16, ALONE, True), ("auto", CPU, None, ALONE, False)],
        *[("off", CUDA, None, ALONE, False), ("on", CUDA, torch.float16, ALONE, False)],
        *[("on", CUDA, None, NCCL, True), ("auto", CUDA, None, NCCL, False)],
        *[("on", CUDA, torch.float16, NCCL, False), ("on", CUDA, None, Ranks(0, 2), False)],
    ],
)
def test_which_steps_run_beside_the_default_stream(choice, device, amp_dtype, ranks, expected, monkeypatch) -> None:
    """Those that are captured, and no others: replicas accumulate their gradients where they were made."""
    monkeypatch.setattr(compiling, "_missing", lambda device: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: "a stream of its own")
    assert (capture_stream(choice, device, amp_dtype, ranks) is not None) == expected
