"""A run that was interrupted and resumed ends as the uninterrupted one, to the bit."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from compare import differences_of_folders
from shown import shown
from utils.reporting.training_report import TIMINGS

OF_THE_MACHINE = {"images_per_second", "milliseconds"}

# No cadence divides 30, where the runs are interrupted.
CADENCES = "--steps_per_log 7 --steps_per_eval 25 --steps_per_display_output 25 --ema"
STAGE_1 = (
    f"train_vqgan.py {{RUN}} {{VQGAN}} {CADENCES} --codebook_init encoder --restart_dead_codes 7 "
    "--restart_dead_codes_until 50 --disc_start_step 20 --steps_per_update_ema 3"
)
STAGE_2 = (
    f"train_sampler.py {{RUN}} {{PRIOR}} {CADENCES} --ae_load_dir vqgan --warmup_iters 40 --lr 1e-3 "
    "--attn_pdrop 0.1 --embd_pdrop 0.1 --n_samples 2 --total_steps 8 --steps_per_update_ema 3"
)
RUNS = {
    "vqgan_float32": f"{STAGE_1} --no_amp",
    "vqgan_bfloat16": f"{STAGE_1} --amp --diff_aug --horizontal_flip",
    "absorbing_float32": f"{STAGE_2} --no_amp",
    "absorbing_bfloat16": f"{STAGE_2} --amp --horizontal_flip --mask_schedule fixed --loss_type mlm",
}


@pytest.fixture(scope="module")
def resumed(toy, new_shell) -> Path:
    """A logs folder with each of `RUNS` twice: in one go (`<name>`), and in two (`<name>_resumed`).

    The second is the first, as if killed on its way from step 30 to 60, and started again: by --resume in float32, by
    its own command else, with another number of processes that read images, which must not matter.
    """
    shell = new_shell()
    shutil.copytree(toy.folder / "data", shell.folder / "data")
    shutil.copytree(toy.logs / "vqgan", shell.logs / "vqgan")
    whole = {name: f"{command} --train_steps 60 --steps_per_checkpoint 30" for name, command in RUNS.items()}
    names = [[name for name in RUNS if name.startswith(kind)] for kind in ("vqgan", "absorbing")]
    shell.abreast(*([f"{whole[name]} --log_dir {name}" for name in chain] for chain in names))
    again = []
    for name, command in whole.items():
        killed = shutil.copytree(shell.logs / name, shell.logs / f"{name}_resumed")
        for file in (killed / "saved_models").glob("*_60.th"):
            file.unlink()
        same = f"{command.split()[0]} --resume" if "float32" in name else command
        again.append([f"{same} --log_dir {killed.name} --num_workers 2"])
    shell.abreast(*again)
    return shell.logs


@pytest.mark.parametrize("name", list(RUNS))
def test_files_metrics_and_what_is_shown_are_identical(resumed: Path, name: str) -> None:
    kind, runs = name.split("_")[0], [resumed / name, resumed / f"{name}_resumed"]
    once, twice = (run / "saved_models" for run in runs)
    files = {f"{kind}_60.th", f"{kind}_ema_60.th", f"{kind}_state_60.th"}
    assert {file.name for file in once.iterdir()} == files | {file.replace("60", "30") for file in files}
    assert differences_of_folders(twice, once) == []
    state = torch.load(once / f"{kind}_state_60.th", weights_only=True)
    assert state["averages"]["sums"]  # 60 is no multiple of 7: the means of four steps are open

    metrics = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in runs]
    once, twice = ([{key: line[key] for key in line.keys() - set(TIMINGS)} for line in lines] for lines in metrics)
    assert [line["step"] for line in once if line["split"] == "train"] == [7, 14, 21, 28, 35, 42, 49, 56]
    assert [line["step"] for line in once if line["split"] == "val"] == [25, 50]
    assert once == twice

    boards = list(map(shown, runs))
    assert len(boards[0].curves) > 3
    for part in ("curves", "bars", "pictures"):
        once, twice = ({window: str(what) for window, what in getattr(board, part).items()} for board in boards)
        assert {window for window in once | twice if once.get(window) != twice.get(window)} <= OF_THE_MACHINE


def test_what_was_resumed_does_something(resumed: Path) -> None:
    """Between the two halves everything that must be kept has moved: averages, moments, counts, discriminator."""
    folder = resumed / "vqgan_float32_resumed" / "saved_models"
    half, end = (torch.load(folder / f"vqgan_state_{step}.th", weights_only=True)["trainer"] for step in (30, 60))
    assert half["usage"].sum() > 0
    assert half["optimisers"]["disc"]["state"]
    models = [torch.load(folder / f"vqgan_{name}.th", weights_only=True) for name in ("30", "60", "ema_30", "ema_60")]
    for weight in ("ae.generator.blocks.0.weight", "disc.main.0.weight", "ae.quantize.embedding.weight"):
        assert len({model[weight].numpy().tobytes() for model in models}) == 4, weight
    assert end["optimisers"]["ae"]["state"][0]["step"] == 60


def test_stage_2_keeps_to_its_autoencoder(tiny) -> None:
    tiny.ok("train_vqgan.py --resume --log_dir ae --train_steps 12")  # stage 1 goes on
    resume = "train_sampler.py --resume --log_dir prior --train_steps"
    for command in (f"{resume} 10", "experiments/get_samples.py --load_dir prior --log_dir samples --n_samples 2"):
        ended = tiny.run(command)
        assert ended.code == 0
        assert "logs/ae/saved_models/vqgan_ema_8.th" in ended.out
        assert "is not the autoencoder" not in ended.out + ended.err
    models = tiny.folder / "logs/ae/saved_models"
    (models / "vqgan_ema_8.th").write_bytes((models / "vqgan_ema_12.th").read_bytes())  # as if trained anew
    ended = tiny.run(f"{resume} 12")
    assert ended.code == 0
    assert "WARNING: logs/ae/saved_models/vqgan_ema_8.th is not the autoencoder that" in ended.out + ended.err


def test_a_finished_run_says_how_it_goes_on(tiny) -> None:
    out = tiny.ok("train_sampler.py --resume --log_dir prior")
    assert "continuing after step 8, 0 steps to do; a larger --train_steps goes on" in out
    files = [file for file in (tiny.folder / "logs").rglob("*") if file.is_file() and file.name != ".lock"]
    before = [file.read_bytes() for file in files]
    command = f"{tiny.stage_2} --dataset custom --steps_per_checkpoint 4 --log_dir prior"
    assert "logs/prior is complete: absorbing_8.th is its last step" in tiny.ok(f"{command} --train_steps 8")
    assert [file.read_bytes() for file in files] == before
    ended = tiny.run(f"{command} --train_steps 9")
    assert (ended.code, ended.out) == (2, "")
    assert "--train_steps: the run in logs/prior has 8, this command 9: --resume goes on" in ended.err
    assert "; a larger" not in tiny.ok("train_sampler.py --resume --log_dir prior --train_steps 9")


def test_experiments_notice_another_autoencoder(tiny) -> None:
    """By its file's checksum, or its step where no training state tells; whatever it is called."""
    logs = tiny.folder / "logs"
    (logs / "ae").rename(logs / "moved")
    # So short a run does not move the average.
    shutil.copy(logs / "moved/saved_models/vqgan_8.th", logs / "moved/saved_models/vqgan_ema_4.th")
    shutil.copytree(logs / "moved", logs / "other")
    shutil.copy(logs / "moved/saved_models/vqgan_ema_4.th", logs / "other/saved_models/vqgan_ema_8.th")

    def warned(flags: str) -> bool:
        ended = tiny.run(f"experiments/get_samples.py --load_dir prior --log_dir samples --n_samples 2 {flags}")
        assert ended.code == 0, ended.err
        line = r"WARNING: \S+ is not the autoencoder whose codes \S+ learnt.*--ae_load_dir and --ae_load_step\n"
        assert not re.search("autoencoder|learnt", re.sub(line, "", ended.err))
        return re.search(line, ended.err) is not None

    flags = "--ae_load_dir moved --load_dir prior --log_dir samples --n_samples 2 --dataset toy_churches"
    err = tiny.run(f"experiments/get_samples.py {flags}").err
    assert "learnt from --dataset custom, and this is of --dataset toy_churches\n" in err
    old, unknown = "--ae_load_dir moved --ae_load_step 4", "--dataset custom --total_steps 4"
    assert not warned("--ae_load_dir moved")
    assert not warned("--ae_load_dir moved --no_ema")
    assert warned(old)
    assert warned("--ae_load_dir other")
    (logs / "prior/saved_models/absorbing_state_8.th").write_bytes(b"torn")
    assert warned(old)
    assert not warned("--ae_load_dir other")
    (logs / "prior/hparams.yaml").unlink()
    assert not warned(f"{old} {unknown} --bert_n_emb 8 --bert_n_head 1 --bert_n_layers 1")
