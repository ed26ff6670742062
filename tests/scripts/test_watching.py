"""Runs with a real visdom server that is well, ill or replaced, and what a browser shows of them."""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from browser import Browser
from hparams.fields import values_of
from hparams.resolve import resolve
from hparams.settings.stages import VQGANStage
from jobs import a_job
from shown import shown
from utils.pretrained.perceptual import untrained_lpips
from utils.reporting.training_report import TrainingReport
from utils.runs.logged import read_metrics
from utils.runs.run_folder import VQGAN
from visdom_process import VisdomServer, eventually, other_program

CADENCES = "--steps_per_log 2 --steps_per_eval 20 --steps_per_display_output 20 --steps_per_save_output 0 --ema"
LPIPS = "--perceptual lpips --perceptual_weights_file vgg.pth"
STAGE_1 = f"train_vqgan.py {{RUN}} {{VQGAN}} {CADENCES} --disc_start_step 10 {LPIPS}"
STAGE_2 = f"train_sampler.py {{RUN}} {{PRIOR}} {CADENCES} --ae_load_dir vqgan --total_steps 8 --n_samples 2 --no_amp"
CURVES = {  # of some panes
    "stage_1": {
        "L1": {"train", "val"},
        "perceptual loss": {"train", "val"},
        "adversarial losses": {"generator", "discriminator"},
        "PSNR": {"val"},
        "time of a step": {"data", "step", "other"},
    },
    "stage_2": {"objective": {"train", "val"}, "ELBO": {"train", "val"}},
}
EXPERIMENTS = {
    "samples": "get_samples.py {RUN} --load_dir stage_2 --n_samples 4",
    "reconstruction_fid": "calc_VQGAN_FID.py {EVERYWHERE} --ae_load_dir vqgan --split val --n_samples 8 --batch_size 8 "
    "--kid_subset_size 5",
    "likelihood": "calc_approximate_ELBO.py {RUN} --load_dir stage_2 --train_steps 200 --steps_per_eval 100 "
    "--elbo_steps 8",
    "neighbours": "calc_nearest_neighbours.py {RUN} --load_dir stage_2 --n_samples 3 --top_k 4 --train_images 20",
    "larger": "generate_big_samples.py {RUN} --load_dir stage_2 --shape 8 9 --n_samples 2 --order random --stride 2",
}
PANES = {  # of their pages
    "samples": {"samples"},
    "reconstruction_fid": {"results", "originals over reconstructions"},
    "likelihood": {"results", "pixel term"},
    "neighbours": {"results", "samples, then the nearest training images"},
    "larger": {"results", "samples"},
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VisdomServer]:
    running = VisdomServer(tmp_path_factory.mktemp("visdom"))
    yield running
    running.stop()


@pytest.fixture(scope="module")
def watched(toy, server: VisdomServer, new_shell) -> Any:
    """A shell whose logs/ holds a watched run of each stage."""
    shell = new_shell()
    (shell.folder / "data").symlink_to(toy.folder / "data")
    shell.logs.mkdir()
    (shell.logs / "vqgan").symlink_to(toy.logs / "vqgan")
    torch.save(untrained_lpips("vgg").state_dict(), shell.folder / "vgg.pth")
    port = f"--visdom_port {server.port}"
    shell.abreast(
        [f"{STAGE_1} {port} --train_steps 40 --log_dir stage_1 --sinks visdom summary tensorboard"],
        [f"{STAGE_2} {port} --train_steps 40 --log_dir stage_2 --sinks visdom summary"],
    )
    return shell


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    opened = Browser(tmp_path_factory.mktemp("browser"))
    yield opened
    opened.close()


@pytest.mark.parametrize("stage", list(CURVES))
def test_every_pane_is_there_with_data_and_title(
    watched, server: VisdomServer, browser: Browser, artefacts: Path, stage: str
) -> None:
    titles = {pane.title for pane in shown(watched.logs / stage).panes.values()}
    assert titles > {"run", "learning rate", *CURVES[stage]}
    panes = seen(browser, server, stage, titles, artefacts)
    for title, curves in CURVES[stage].items():
        assert set(panes[title]["points"]) == curves, title
    assert all(words in panes["run"]["text"] for words in ("40 of 40", f"logs/{stage}"))
    assert any("step 40" in pane["text"] for title, pane in panes.items() if title != "run")  # below the pictures
    with Image.open(watched.logs / stage / "summary.png") as page:
        assert page.size[0] == 1280
        page.save(artefacts / f"summary_{stage}.png")
    assert stage != "stage_1" or list(watched.logs.glob("stage_1/tensorboard/events*"))


def seen(browser: Browser, server: VisdomServer, run: str, titles: set[str], artefacts: Path) -> dict[str, Any]:
    """A run's page as a browser shows it, title → pane, which has these panes, each with all that belongs to it."""
    browser.open(f"http://127.0.0.1:{server.port}/env/{run}")
    panes = browser.panes(len(titles))
    browser.screenshot(artefacts / f"{run}.png")
    assert browser.errors == []
    assert sorted(pane["title"] for pane in panes) == sorted(titles)
    for pane in panes:
        if pane["labels"]:
            assert pane["points"], pane["title"]
            assert all(points > 1 for points in pane["points"].values()), (pane["title"], pane["points"])
            assert all(pane["labels"]), pane["title"]
        elif pane["title"] not in {"run", "results"}:  # which are words
            assert (pane["images"], pane["whole"]) == ([True], True), pane["title"]
    for one, other in itertools.combinations(panes, 2):
        (left, top, right, bottom), (its_left, its_top, its_right, its_bottom) = one["box"], other["box"]
        beside = right <= its_left or its_right <= left or bottom <= its_top or its_bottom <= top
        assert beside, (one["title"], other["title"])
    return {pane["title"]: pane for pane in panes}


@pytest.fixture(scope="module")
def experiments(watched, server: VisdomServer) -> Any:
    """`watched`, in which each experiment has run."""
    flags = f"--visdom_port {server.port} --log_dir experiments"
    commands = [f"experiments/{command} {flags}/{run}" for run, command in EXPERIMENTS.items()]
    watched.abreast(commands[::2], commands[1::2])
    return watched


@pytest.mark.parametrize("run", list(EXPERIMENTS))
def test_pages_of_experiments(experiments, server: VisdomServer, browser: Browser, artefacts: Path, run: str) -> None:
    panes = seen(browser, server, f"experiments~{run}", PANES[run], artefacts)
    if "results" in panes:
        (entry,) = json.loads((experiments.logs / "experiments" / run / "results.json").read_text())
        for name, value in entry["values"].items():
            assert re.search(rf"^{name.replace('_', ' ')}\s+{value:.4g}$", panes["results"]["text"], re.MULTILINE), name
    if "pixel term" in panes:
        assert set(panes["pixel term"]["points"]) == {"train", "val"}


def test_the_pane_of_a_gpus_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With numbers in CUDA's place."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    settings = values_of(resolve(VQGANStage, {"dataset": "churches"}))
    for name, gib in (("allocated", 1.0), ("reserved", 1.5)):
        monkeypatch.setattr(torch.cuda, f"max_memory_{name}", lambda device, gib=gib: gib * 2**30)
    with a_job() as job:
        job.take_folder(resume_step=None)
        job.device = torch.device("cuda")
        report = TrainingReport(job, settings, VQGAN, start=0, kept=False)
        report.logged(1, {"loss": 1.0, "l1": 0.5}, {}, steps=1, seconds={"step": 0.2}, skipped=0)
    curves = shown(tmp_path / "logs/run").curves["gpu_memory"]
    assert {name: curve.y for name, curve in curves.items()} == {"in use outside CUDA graphs": [1], "reserved": [1.5]}


def test_replay_shows_a_past_run_from_its_folder(watched, server: VisdomServer) -> None:
    """On visdom what it showed before, and on one page, and in TensorBoard."""

    def contents() -> dict[str, Any]:  # without what differs from one server to the next
        return {name: (pane["title"], pane["content"], pane["i"]) for name, pane in server.panes("stage_2").items()}

    folder, before = watched.logs / "stage_2", contents()
    server.forget("stage_2")
    (folder / "summary.png").unlink()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 42, "split": "tr')  # cut off
    command = "experiments/replay_dashboard.py --log_dir stage_2 --sinks visdom summary tensorboard"
    out = watched.ok(f"{command} --visdom_port {server.port}")
    assert out.splitlines()[0] == f"{len(before)} panes at http://localhost:{server.port}/env/stage_2"
    assert out.splitlines()[1:] == ["summary in logs/stage_2/summary.png", "shown in tensorboard"]
    assert (folder / "summary.png").exists()
    assert list((folder / "tensorboard").glob("events*"))
    assert contents() == before


def test_replay_of_a_run_that_has_metrics_alone(shell, server: VisdomServer) -> None:
    """As runs of earlier versions have them; without a server, and where no summary can be written."""
    folder, replay = shell.logs / "run", "experiments/replay_dashboard.py --log_dir"
    for name in ("run", "older"):
        (shell.logs / name).mkdir(parents=True)
    lines = [{"step": step, "split": "train", "loss": 1 / (1 + step)} for step in range(3)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (shell.logs / "older/dashboard.jsonl").touch()  # all that it can be shown from is metrics and pictures
    for name in ("nowhere", "older"):
        told = shell.refused(f"{replay} {name}")
        assert f"--log_dir {name}: there is no metrics.jsonl, results.json or images/" in told
    told = shell.refused(f"{replay} run --visdom_port 9")
    assert "--visdom_port" in told
    assert "--sinks summary" in told
    plan = "logs/run would be shown at http://localhost:9, in logs/run/summary.png"
    assert plan in shell.ok(f"{replay} run --visdom_port 9 --dry_run")
    assert "use --sinks summary" in shell.refused(f"{replay} run --visdom_port 9 --summary_only")
    assert "logs/run would be shown in logs/run/summary.png" in shell.ok(f"{replay} run --sinks summary --dry_run")
    assert not (folder / "summary.png").exists()
    assert shell.ok(f"{replay} run --sinks summary") == "summary in logs/run/summary.png\n"
    with Image.open(folder / "summary.png") as page:
        assert page.size[0] == 1280
    (folder / "summary.png").unlink()
    (folder / "summary.png").mkdir()
    done = shell.run(f"{replay} run --visdom_port {server.port}")
    assert (done.code, done.err) == (0, "WARNING: no summary: logs/run/summary.png: Is a directory\n")
    assert done.out == f"1 panes at http://localhost:{server.port}/env/run\n"
    assert list(server.panes("run")) == ["loss"]
    assert "summary.png: Is a directory" in shell.refused(f"{replay} run --sinks summary")


def test_without_a_sink_no_server_is_asked_and_the_run_can_be_shown_later(watched, server: VisdomServer) -> None:
    with other_program(200, b"hello") as (port, asked):
        off = f"--sinks none --visdom_port {port}"
        said = watched.run(f"{STAGE_2} {off} --train_steps 2 --log_dir silent").err
        watched.ok(f"experiments/{EXPERIMENTS['samples']} {off} --log_dir silent_samples")
    assert asked == []
    assert "note: --visdom_port does nothing with --sinks none" in said
    assert "dashboard:" not in said
    for run in ("silent", "silent_samples"):
        assert not (watched.logs / run / "summary.png").exists()
        watched.ok(f"experiments/replay_dashboard.py --log_dir {run} --visdom_port {server.port}")
        assert server.panes(run).keys() == shown(watched.logs / run).panes.keys()


def test_a_run_of_an_odd_name(watched, server: VisdomServer, browser: Browser, artefacts: Path) -> None:
    """Its summary is drawn, and its page opens: in the browser, where it is shown, by the address that is printed."""
    name = r"a$b$c_$/100%+\'é漢😀#?<b>"
    port = f"--visdom_port {server.port}"
    done = watched.run(f"{STAGE_2} {port} --train_steps 4 --sinks visdom summary --log_dir {shlex.quote(name)}")
    assert (done.code, done.err) == (0, "")
    (watched.logs / name / "summary.png").unlink()
    done = watched.run(f"experiments/replay_dashboard.py {port} --log_dir {shlex.quote(name)}")
    assert (done.code, done.err) == (0, "")
    assert (watched.logs / name / "summary.png").exists()
    panes = shown(watched.logs / name).panes
    page = re.match(rf"{len(panes)} panes at (\S+)\n", done.out)[1]
    browser.open(page)
    assert {pane["title"] for pane in browser.panes(len(panes))} == {pane.title for pane in panes.values()}
    browser.screenshot(artefacts / "odd_name.png")
    assert browser.errors == []


def test_a_run_whose_server_hangs(watched, server: VisdomServer) -> None:
    """It goes on, and its weights do not notice."""
    pid = watched.start(f"{STAGE_2} --visdom_port {server.port} --train_steps 40 --log_dir hung")
    metrics = watched.logs / "hung/metrics.jsonl"
    eventually(lambda: metrics.exists() and '"train"' in metrics.read_text())
    os.kill(pid, signal.SIGSTOP)  # or it might be over before it has happened
    server.freeze()
    os.kill(pid, signal.SIGCONT)
    ended = watched.wait(pid)
    server.thaw()
    assert ended.code == 0, ended
    assert (ended.out + ended.err).count("dashboard:") < 2  # none where the run ends before the server's time is up
    assert [line["step"] for line in read_metrics(metrics) if line["split"] == "train"] == list(range(2, 41, 2))
    weights, expected = (
        torch.load(watched.logs / run / "saved_models/absorbing_40.th", weights_only=True)
        for run in ("hung", "stage_2")
    )
    assert all(torch.equal(value, expected[key]) for key, value in weights.items())
