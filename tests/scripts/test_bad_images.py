"""Images that cannot be read, as a run meets them."""

from __future__ import annotations

import json
import os

import numpy as np

from compare import same_files


def spoil(tiny, count: int) -> None:
    """Break some of the 24 photos, from 05.png on each fourth, each in another way."""
    whole = (tiny.folder / "photos/00.png").read_bytes()
    for number, content in enumerate((whole[:60], b"", b"no image at all", whole[:-20])[:count]):
        (tiny.folder / f"photos/{5 + 4 * number:02}.png").write_bytes(content)


def listed_by(tiny, run: str) -> list[str]:
    """The files that a run lists, sorted."""
    lines = (tiny.folder / f"logs/{run}/bad_images.txt").read_text().splitlines()
    return sorted(line.split("\t")[0].rpartition("/")[2] for line in lines)


def test_runs_go_on_with_stand_ins_and_list_what_they_met(tiny) -> None:
    spoil(tiny, 3)
    command = f"{tiny.stage_1} --dataset custom --max_bad_images 0.2"
    out = tiny.ok(f"{command} --train_steps 12 --log_dir whole")
    assert out.count("another image stands in for it") == 3
    tiny.ok(f"{command} --train_steps 4 --log_dir run")
    tiny.ok("train_vqgan.py --resume --train_steps 12 --log_dir run --num_workers 1")
    assert same_files(*(tiny.folder / f"logs/{run}/saved_models/vqgan_12.th" for run in ("run", "whole")))
    assert listed_by(tiny, "whole") == listed_by(tiny, "run") == ["05.png", "09.png", "13.png"]


def test_an_unreadable_image_whose_name_is_no_utf8_is_listed_once(tiny) -> None:
    """As archives from elsewhere hold them."""
    name = b"caf\xe9.png"
    (tiny.folder / "photos/05.png").unlink()
    (tiny.folder / "photos" / os.fsdecode(name)).write_bytes(b"no image at all")
    out = tiny.ok(f"{tiny.stage_1} --dataset custom --max_bad_images 0.05 --train_steps 6 --log_dir run")
    out += tiny.ok("train_vqgan.py --resume --train_steps 12 --log_dir run")
    assert out.count("caf\\udce9.png as an image (damaged, or of none of the kinds JPEG,") == 1
    assert "caf\\udce9.png as an image" in (tiny.folder / "logs/run/log.txt").read_text(encoding="utf-8")
    listed = (tiny.folder / "logs/run/bad_images.txt").read_bytes()
    assert listed.startswith(b"photos/" + name + b"\t")
    assert listed.count(b"\n") == 1


def test_codes_of_stand_ins_are_cached_with_the_list(tiny) -> None:
    spoil(tiny, 2)
    command = f"{tiny.stage_2} --dataset custom --max_bad_images 0.1 --train_steps 2"
    first = tiny.ok(f"{command} --log_dir first")
    second = tiny.ok(f"{command} --log_dir second")
    assert "encoding 24 images" in first
    assert "encoding" not in second
    lists = [(tiny.folder / f"logs/{run}/bad_images.txt").read_text() for run in ("first", "second")]
    assert lists[0] == lists[1]
    assert lists[0].count("\n") == 2
    (note,) = (tiny.folder / "logs/ae/latents").glob("*/*.json")
    assert b"05.png" in note.read_bytes()
    codes = np.load(note.with_suffix(".npy"))[:, 0]
    assert (codes == codes[5]).all(1).sum() >= 2  # its own row, and that of the image which stands in

    refused = tiny.run(f"{command} --log_dir third --max_bad_images 0.05")
    assert refused.code == 2
    assert "2 of 24 images cannot be read, more than --max_bad_images 0.05" in refused.err


def test_experiments_go_on_too_and_list_what_they_met(tiny) -> None:
    spoil(tiny, 3)
    models = "--ae_load_dir ae --load_dir prior --batch_size 4 --device cpu --num_workers 0 --visdom_port 9"
    commands = {
        "nll": "calc_approximate_ELBO.py --train_steps 20 --steps_per_eval 4 --elbo_steps 2",
        "near": "calc_nearest_neighbours.py --n_samples 2 --top_k 21 --distance r64",
        "anew": "inpaint.py --split all --n_images 16 --n_samples 1 --region 0 0 4 4",
    }
    refused = tiny.run(f"experiments/{commands['nll']} {models} --log_dir nll")
    assert refused.code == 2
    assert "more than --max_bad_images 0.01 allows" in refused.err
    for run, command in commands.items():
        out = tiny.ok(f"experiments/{command} {models} --log_dir {run} --sinks visdom --max_bad_images 0.2")
        assert listed_by(tiny, run) == ["05.png", "09.png", "13.png"]
        assert out.count("it is no neighbour" if run == "near" else "another image stands in for it") == 3
    near = json.loads((tiny.folder / "logs/near/neighbours.json").read_text())
    assert {entry["index"] for row in near["samples"] for entry in row} == set(range(24)) - {5, 9, 13}


def test_too_many_end_the_run_by_one_line(tiny) -> None:
    spoil(tiny, 4)
    ended = tiny.run("train_vqgan.py --resume --log_dir ae --train_steps 30 --max_bad_images 0.05")
    assert ended.code == 2
    assert ended.err.count("error:") == 1
    assert "of 24 images cannot be read" in ended.err
    assert "logs/ae/bad_images.txt" in ended.err
    assert (tiny.folder / "logs/ae/saved_models/vqgan_state_8.th").exists()


def test_a_changed_data_set_is_noticed(tiny) -> None:
    tiny.ok("train_vqgan.py --resume --log_dir ae --train_steps 10")  # the files are at another place than they were
    photos, said = tiny.folder / "photos", []
    for steps, copy in ((12, "03.png"), (14, "99.png"), (16, None)):  # another image, one more, no change
        if copy:
            (photos / copy).write_bytes((photos / "04.png").read_bytes())
        ended = tiny.run(f"train_vqgan.py --resume --log_dir ae --train_steps {steps}")
        assert ended.code == 0
        said.append(ended.out + ended.err)
    for step, now in ((10, 24), (12, 25)):
        assert f"WARNING: the data set changed since step {step}: 24 images then, {now} now" in said.pop(0)
    assert "WARNING: the data set" not in said[0]
