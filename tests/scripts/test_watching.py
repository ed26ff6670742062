"""Runs with a real visdom server that is well, ill or replaced, and what a browser shows of them."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from browser import Browser
from hparams.fields import values_of
from hparams.resolve import resolve
from hparams.settings.stages import VQGANStage
from shown import shown
from utils.pretrained.perceptual import untrained_lpips
from utils.reporting.sinks import open_sinks
from utils.reporting.training_report import TrainingReport
from utils.runs.job import Job
from utils.runs.logged import read_metrics
from utils.runs.run_folder import VQGAN
from visdom_process import VisdomServer, other_program

CADENCES = "--steps_per_log 2 --steps_per_eval 20 --steps_per_display_output 20 --steps_per_save_output 0 --ema"
LPIPS = "--perceptual lpips --perceptual_weights_file vgg.pth"
STAGE_1 = f"train_vqgan.py {{RUN}} {{VQGAN}} {CADENCES} --disc_start_step 10 {LPIPS}"
STAGE_2 = f"train_sampler.py {{RUN}} {{PRIOR}} {CADENCES} --ae_load_dir vqgan --total_steps 8 --n_samples 2 --no_amp"
LONG = 400  # steps of a run that something happens to on its way
BOTH_STAGES = {
    "stage_1": {
        "originals over reconstructions",
        "run",
        "L1",
        "perceptual loss",
        "total loss of the autoencoder",
        "codebook loss",
        "adversarial losses",
        "adaptive weight of the generator's loss",
        "PSNR",
        "codebook perplexity",
        "codebook usage",
        "uses of each code, last window",
    },
    "stage_2": {
        "samples",
        "run",
        "objective",
        "ELBO",
        "objective by timestep, moving average",
        "one sample while it is unmasked, over the most probable images",
    },
}
CURVES = {
    "stage_1": {
        "L1": {"train", "val"},
        "perceptual loss": {"train", "val"},
        "adversarial losses": {"generator", "discriminator"},
        "codebook usage": {"train", "val"},
        "PSNR": {"val"},
        "time of a step": {"data", "step", "other"},
    },
    "stage_2": {"objective": {"train", "val"}, "ELBO": {"train", "val"}},
}
EXPERIMENTS = {
    "samples": ("experiments/get_samples.py {RUN} --load_dir stage_2 --n_samples 4", {"samples"}),
    "reconstruction_fid": (
        "experiments/calc_VQGAN_FID.py {EVERYWHERE} --ae_load_dir vqgan --split val --n_samples 8 --kid_subset_size 5 "
        "--batch_size 8",
        {"results", "originals over reconstructions"},
    ),
    "likelihood": (
        "experiments/calc_approximate_ELBO.py {RUN} --load_dir stage_2 --train_steps 200 --steps_per_eval 100 "
        "--elbo_steps 8",
        {"results", "pixel term"},
    ),
    "neighbours": (
        "experiments/calc_nearest_neighbours.py {RUN} --load_dir stage_2 --n_samples 3 --top_k 4 --train_images 20",
        {"results", "samples, then the nearest training images"},
    ),
    "larger": (
        "experiments/generate_big_samples.py {RUN} --load_dir stage_2 --shape 8 9 --n_samples 2 --order random "
        "--stride 2",
        {"results", "samples"},
    ),
}
TEXTS = {"run", "results"}  # panes of words
MACHINE = {"learning rate", "images per second", "time of a step"}
MACHINE_WINDOWS = ("run", "images_per_second", "milliseconds")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VisdomServer]:
    running = VisdomServer(tmp_path_factory.mktemp("visdom"))
    yield running
    running.stop()


@pytest.fixture(scope="module")
def watched(toy, server: VisdomServer, new_shell) -> Any:
    """A shell whose logs/ holds a watched run of each stage, and `undisturbed`, a longer one."""
    shell = new_shell()
    (shell.folder / "data").symlink_to(toy.folder / "data")
    shell.logs.mkdir()
    (shell.logs / "vqgan").symlink_to(toy.logs / "vqgan")
    torch.save(untrained_lpips("vgg").state_dict(), shell.folder / "vgg.pth")
    port = f"--visdom_port {server.port}"
    shell.abreast(
        [f"{STAGE_1} {port} --train_steps 40 --log_dir stage_1 --sinks visdom summary tensorboard"],
        [
            f"{STAGE_2} {port} --train_steps 40 --log_dir stage_2 --sinks visdom summary",
            f"{STAGE_2} {port} --train_steps {LONG} --log_dir undisturbed",
        ],
    )
    return shell


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    opened = Browser(tmp_path_factory.mktemp("browser"))
    yield opened
    opened.close()


@pytest.mark.parametrize("stage", list(BOTH_STAGES))
def test_every_pane_is_there_with_data_and_title(
    watched, server: VisdomServer, browser: Browser, artefacts: Path, stage: str
) -> None:
    titles = BOTH_STAGES[stage] | MACHINE
    panes = seen(browser, server, stage, titles, artefacts)
    for title, curves in CURVES[stage].items():
        assert set(panes[title]["points"]) == curves, title
    assert "40 of 40" in panes["run"]["text"]
    assert f"logs/{stage}" in panes["run"]["text"]


def seen(browser: Browser, server: VisdomServer, run: str, titles: set[str], artefacts: Path) -> dict[str, Any]:
    """A run's page as a browser shows it, title → pane, which has these panes, each with all that belongs to it."""
    browser.open(f"http://127.0.0.1:{server.port}/env/{run}")
    panes = browser.panes(len(titles))
    browser.screenshot(artefacts / f"{run}.png")
    assert browser.errors == []
    assert {pane["title"] for pane in panes} == titles
    assert len(panes) == len(titles)
    for pane in panes:
        if pane["labels"]:
            assert pane["points"], pane["title"]
            assert all(points > 1 for points in pane["points"].values()), (pane["title"], pane["points"])
            assert all(pane["labels"]), pane["title"]
        elif pane["title"] not in TEXTS:
            assert pane["images"] == [True], pane["title"]
    for one in panes:
        for other in panes:
            if one is not other:
                assert not overlap(one["box"], other["box"]), (one["title"], other["title"])
    return {pane["title"]: pane for pane in panes}


def overlap(one: list[int], other: list[int]) -> bool:
    return max(one[0], other[0]) < min(one[2], other[2]) and max(one[1], other[1]) < min(one[3], other[3])


@pytest.mark.parametrize("run", list(EXPERIMENTS))
def test_pages_of_experiments(experiments, server: VisdomServer, browser: Browser, artefacts: Path, run: str) -> None:
    panes = seen(browser, server, f"experiments~{run}", EXPERIMENTS[run][1], artefacts)
    if "results" in panes:
        (entry,) = json.loads((experiments.logs / "experiments" / run / "results.json").read_text())
        for name, value in entry["values"].items():
            assert re.search(rf"^{name.replace('_', ' ')}\s+{value:.4g}$", panes["results"]["text"], re.MULTILINE), name
    if "pixel term" in panes:
        assert set(panes["pixel term"]["points"]) == {"train", "val"}


@pytest.fixture(scope="module")
def experiments(watched, server: VisdomServer) -> Any:
    """`watched`, in which each experiment has run."""
    port = f"--visdom_port {server.port}"
    commands = [f"{command} {port} --log_dir experiments/{run}" for run, (command, _) in EXPERIMENTS.items()]
    watched.abreast(commands[::2], commands[1::2])
    return watched


def test_the_pane_of_a_gpus_memory(server: VisdomServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With numbers in CUDA's place."""
    typed = {"dataset": "churches", "visdom_port": server.port, "log_dir": "on_a_gpu", "sinks": ("visdom",)}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    settings = resolve(VQGANStage, typed)
    with Job(settings.run, torch.device("cpu"), open_sinks=open_sinks, settings=settings) as job:
        job.take_folder(resume_step=None)
        job.device = torch.device("cuda")
        report = TrainingReport(job, values_of(settings), VQGAN, start=0, kept=False)
        for step in (1, 2, 3):
            monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device, gib=step: gib * 2**30)
            monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device, gib=step: (gib + 0.5) * 2**30)
            report.logged(step, {"loss": 1.0, "l1": 0.5}, {}, steps=1, seconds={"step": 0.2}, skipped=0)
        report.close()
    curves = {"in use outside CUDA graphs": [(1, 1), (2, 2), (3, 3)], "reserved": [(1, 1.5), (2, 2.5), (3, 3.5)]}
    assert server.curves("on_a_gpu", "gpu_memory") == curves


@pytest.mark.parametrize("stage", list(BOTH_STAGES))
def test_other_sinks_show_the_run_too(watched, artefacts: Path, stage: str) -> None:
    with Image.open(watched.logs / stage / "summary.png") as page:
        page.load()
        assert page.size[0] == 1280
        page.save(artefacts / f"summary_{stage}.png")
    assert stage != "stage_1" or list(watched.logs.glob("stage_1/tensorboard/events*"))


def test_replay_shows_a_past_run_from_its_folder(watched, server: VisdomServer) -> None:
    """On visdom what it showed before, and on one page, and in TensorBoard."""
    folder = watched.logs / "stage_2"
    before = server.panes("stage_2")
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
    assert contents(server.panes("stage_2")) == contents(before)


def test_replay_where_no_summary_can_be_written(recorded, server: VisdomServer) -> None:
    (recorded.logs / "run/summary.png").mkdir()
    done = recorded.run(f"experiments/replay_dashboard.py --log_dir run --visdom_port {server.port}")
    assert done.code == 0
    assert done.err == "WARNING: no summary: logs/run/summary.png: Is a directory\n"
    assert done.out == f"1 panes at http://localhost:{server.port}/env/run\n"
    assert list(server.panes("run")) == ["loss"]
    told = recorded.refused("experiments/replay_dashboard.py --log_dir run --sinks summary")
    assert "summary.png: Is a directory" in told


def test_replay_without_a_server(recorded) -> None:
    summary = recorded.logs / "run/summary.png"
    told = recorded.refused("experiments/replay_dashboard.py --log_dir run --visdom_port 9")
    assert "--visdom_port" in told
    assert "--sinks summary" in told
    (recorded.logs / "older").mkdir()
    (recorded.logs / "older/dashboard.jsonl").touch()  # all that it can be shown from is metrics and pictures
    for name in ("nowhere", "older"):
        told = recorded.refused(f"experiments/replay_dashboard.py --log_dir {name}")
        assert f"--log_dir {name}: there is no metrics.jsonl, results.json or images/" in told
    assert not summary.exists()
    command = "experiments/replay_dashboard.py --log_dir run --visdom_port 9"
    plan = "logs/run would be shown at http://localhost:9, in logs/run/summary.png"
    assert plan in recorded.ok(f"{command} --dry_run")
    assert "use --sinks summary" in recorded.refused(f"{command} --summary_only")
    command += " --sinks summary"
    assert "logs/run would be shown in logs/run/summary.png" in recorded.ok(f"{command} --dry_run")
    assert not summary.exists()
    assert recorded.ok(command) == "summary in logs/run/summary.png\n"
    with Image.open(summary) as page:
        assert page.size[0] == 1280


@pytest.fixture
def recorded(shell) -> Any:
    """A shell whose logs/ has a run with a curve, and nothing else: as runs of earlier versions have it."""
    folder = shell.logs / "run"
    folder.mkdir(parents=True)
    lines = [{"step": step, "split": "train", "loss": 1 / (1 + step)} for step in range(3)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return shell


def contents(panes: dict[str, Any]) -> dict[str, Any]:
    """What the panes show, without what differs from one server to the next."""
    return {window: (pane["title"], pane["content"], pane["i"]) for window, pane in panes.items()}


def disturbed(shell, name: str, port: int, disturb: Callable[[], None]) -> str:
    """The log of a run to which something happens on its way; its weights must not have noticed."""
    pid = shell.start(f"{STAGE_2} --visdom_port {port} --train_steps {LONG} --log_dir {name}")
    metrics = shell.logs / name / "metrics.jsonl"
    while not (metrics.exists() and '"train"' in metrics.read_text()):
        assert shell.code(pid) is None, shell.wait(pid)
        time.sleep(0.02)
    os.kill(pid, signal.SIGSTOP)  # or it might be over before it has happened
    disturb()
    os.kill(pid, signal.SIGCONT)
    ended = shell.wait(pid)
    assert ended.code == 0, ended
    weights, expected = (
        torch.load(shell.logs / run / f"saved_models/absorbing_{LONG}.th", weights_only=True)
        for run in (name, "undisturbed")
    )
    assert all(torch.equal(value, expected[key]) for key, value in weights.items())
    return ended.out + ended.err


def test_without_a_sink_no_server_is_asked_and_the_run_can_be_shown_later(watched, server: VisdomServer) -> None:
    with other_program(200, b"hello") as (port, asked):
        off = f"--sinks none --visdom_port {port}"
        said = watched.run(f"{STAGE_2} {off} --train_steps 2 --log_dir silent").err
        watched.ok(f"{EXPERIMENTS['samples'][0]} {off} --log_dir silent_samples")
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


@pytest.mark.parametrize("trouble", ["hung", "killed"])
def test_a_run_whose_server_is_in_trouble(watched, server: VisdomServer, trouble: str) -> None:
    told = disturbed(watched, trouble, server.port, server.freeze if trouble == "hung" else server.stop)
    server.thaw()
    # None where the run ends before the server's time is up.
    assert told.count("dashboard:") == 1 or (trouble == "hung" and "dashboard:" not in told)
    lines = read_metrics(watched.logs / trouble / "metrics.jsonl")  # all are there, whatever the server got
    assert [line["step"] for line in lines if line["split"] == "train"] == list(range(2, LONG + 1, 2))
    if trouble == "killed":
        server.start()


def test_curves_of_a_run_resumed_twice_with_a_new_server_in_between(watched, server: VisdomServer) -> None:
    """They equal those of an uninterrupted run. No cadence divides the steps at which it stops."""
    command = f"{STAGE_2} --visdom_port {server.port} --steps_per_log 7 --steps_per_checkpoint 0"
    watched.ok(f"{command} --train_steps 60 --log_dir at_once")
    expected = server.panes("at_once")

    watched.ok(f"{command} --train_steps 25 --log_dir in_parts")
    resume = "train_sampler.py --resume --log_dir in_parts --train_steps"
    watched.ok(f"{resume} 45")
    server.stop()
    server.start()
    assert server.panes("in_parts") == {}
    watched.ok(f"{resume} 60")
    found = server.panes("in_parts")
    assert found.keys() == expected.keys()
    for window, pane in expected.items():
        assert (found[window]["title"], found[window]["i"]) == (pane["title"], pane["i"])
        if window not in MACHINE_WINDOWS:
            assert values(found[window]) == values(pane), window
    points = server.curves("in_parts", "images_per_second")["train"]
    assert [x for x, _ in points] == list(range(7, 60, 7))


def values(pane: dict[str, Any]) -> Any:
    if pane["type"] != "plot":
        return pane["content"]
    return [(curve.get("name"), curve["x"], curve["y"]) for curve in pane["content"]["data"]]
