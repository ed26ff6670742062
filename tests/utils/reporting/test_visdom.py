"""A run on a real visdom server on the loopback interface, in good health and in bad."""

from __future__ import annotations

import base64
import contextlib
import io
import itertools
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image

from hparams.errors import UserError
from utils.reporting import board, sinks, visdom
from utils.reporting import visdom_messages as messages
from utils.reporting.layout import Bars, Curves
from utils.reporting.sinks import open_sinks
from utils.reporting.visdom import Server, environment, show_on_visdom
from utils.runs.record import Record
from utils.runs.run_folder import RunFolder
from visdom_process import VisdomServer, eventually, free_port, other_program

ENV = "churches~test"
NOISE = np.random.default_rng(0).integers(0, 256, (3, 1024, 1024), dtype=np.uint8)  # as large as pictures get
Opened = Callable[..., contextlib.AbstractContextManager[Record]]


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VisdomServer]:
    running = VisdomServer(tmp_path_factory.mktemp("visdom"))
    yield running
    running.stop()


@pytest.fixture
def server(shared_server: VisdomServer) -> Iterator[VisdomServer]:
    """A running server that knows nothing of the test's run."""
    yield shared_server
    if shared_server.process.poll() is not None:
        shared_server.start()
    shared_server.thaw()
    shared_server.forget(ENV)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder("churches/test", tmp_path)


@pytest.fixture
def opened(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> Opened:
    """Opens the record of the one run that a test has, shown on visdom; the end waits long for a slow server."""
    monkeypatch.setitem(sinks.SECONDS_TO_CLOSE, "visdom", 60.0)
    monkeypatch.setattr(sinks, "SECONDS_BETWEEN_LOOKS", 0.02)
    monkeypatch.setattr(visdom, "SECONDS_BETWEEN_ATTEMPTS", 0.05)

    def open_record(port: int, resume_step: int | None = None, **settings: Any) -> Any:
        record = Record(folder, resume_step=resume_step)
        address = {"visdom_server": "http://localhost", "visdom_port": port, "visdom_base_url": "/"}
        open_sinks(record, folder, {"sinks": ("visdom",), **address, **settings}, resume_step=resume_step)
        return contextlib.closing(record)

    return open_record


def warnings(folder: RunFolder) -> list[str]:
    return [line.split("  ", 1)[1] for line in folder.log.read_text().splitlines() if "dashboard:" in line]


def losses(record: Record, *steps: int) -> None:
    for step in steps:
        record.scalars(step, "train", {"loss": 1 / (step + 1)})


def expected(*steps: int) -> dict[str, list[tuple[float, float]]]:
    return {"train": [(step, messages.shown(1 / (step + 1))) for step in steps]}


def message_of(step: int | None, picture: np.ndarray) -> dict[str, Any]:
    kept = board.Board({}, messages.picture_message)
    kept.picture(step, "samples", picture)
    ((_, message),) = kept.pictures["samples"]
    return message


def picture_of(content: dict[str, Any]) -> np.ndarray:
    encoded = content["src"].partition("base64,")[2]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded)))).transpose(2, 0, 1)


def test_no_two_runs_share_an_environment() -> None:
    names = {"".join(letters) for length in range(6) for letters in itertools.product("a/~^_+", repeat=length)}
    assert len(set(map(environment, names))) == len(names)
    assert not any("/" in environment(name) for name in names)  # visdom would make it an underscore
    assert environment("demo/vqgan_churches") == "demo~vqgan_churches"
    assert environment("+2b ^2b '\"\\<>&#?%") == "^2b2b ^^2b ^27^22^5c^3c^3e^26^23^3f^25"


def test_each_kind_of_pane_arrives(server: VisdomServer, opened: Opened, folder: RunFolder) -> None:
    """And of what comes faster than the server takes it, all points, and the newest of the rest."""
    grid = NOISE[:, :30, :40]
    with opened(server.port) as record:
        losses(record, *range(900))
        record.scalars(0, "real", {"late or with gaps": 1.0})
        record.scalars(1, "fake", {"late or with gaps": 2.0})
        eventually(lambda: "fake" in server.curves(ENV, "late or with gaps"))
        record.scalars(2, "real", {"late or with gaps": float("nan")})
        record.scalars(2, "fake", {"late or with gaps": float("inf")})
        record.scalars(3, "fake", {"late or with gaps": 4.0})
        record.picture(None, "inpainted", np.zeros_like(grid))
        record.picture(None, "inpainted", grid)
        record.histogram(20, "code_counts", [3, float("nan"), 1])
        for text in ("lr  1e-3", "lr  1e-4\nname <b> caf\udce9"):
            record.text("settings", text)
        record.table("more", ["FID", "<split>"], [[4.068123, "train"], [None, 3]])
    arrived = server.panes(ENV)
    assert server.curves(ENV, "loss") == expected(*range(900))
    late = server.curves(ENV, "late or with gaps")
    assert late == {"real": [(0, 1), (2, None)], "fake": [(1, 2), (2, None), (3, 4)]}
    assert arrived["inpainted"]["title"] == "images, what is given of them, completions"
    np.testing.assert_array_equal(picture_of(arrived["inpainted"]["content"]), grid)
    assert arrived["code_counts"]["content"]["data"][0]["y"] == [3, None, 1]
    assert ">lr  1e-4\nname &lt;b&gt; caf\\udce9</pre>" in arrived["settings"]["content"]
    assert ">FID    &lt;split&gt;\n4.068  train\n       3</pre>" in arrived["more"]["content"]
    assert warnings(folder) == []


def test_without_a_server_one_line_says_so_and_the_folder_can_be_shown_later(
    folder: RunFolder, opened: Opened, request: pytest.FixtureRequest
) -> None:
    port = free_port()
    grid = np.full((3, 8, 8), 77, np.uint8)
    with pytest.raises(UserError, match=r"--visdom_port.*`visdom -p \d+ -bind_local`.*--sinks summary"):
        show_on_visdom(folder, Server("localhost", port))
    with opened(port) as record:
        losses(record, *range(200))
        eventually(lambda: len(warnings(folder)) > 0)
        losses(record, 200)
        record.picture(None, "samples", grid)
    (line,) = warnings(folder)
    assert f"`visdom -p {port} -bind_local`" in line, "without it, the server is open to the network"
    assert line.endswith("or later by experiments/replay_dashboard.py")

    server = request.getfixturevalue("server")
    server.post("events", {"win": "other", "eid": ENV, "data": [{"type": "text", "content": "old"}], "opts": {}})
    assert show_on_visdom(folder, Server("localhost", server.port)) == 2
    assert server.curves(ENV, "loss") == expected(*range(201))
    np.testing.assert_array_equal(picture_of(server.panes(ENV)["samples"]["content"]), grid)
    assert server.panes(ENV).keys() == {"loss", "samples"}


@contextlib.contextmanager
def outage(server: VisdomServer, kind: str) -> Iterator[None]:
    """The server hangs or ends; another program that takes its place is asked for its page, and sent nothing."""
    (server.freeze if kind == "hung" else server.stop)()
    yield
    if kind == "replaced":
        with other_program(200, b"hello", server.port) as (_, asked):
            eventually(lambda: len(asked) > 4)
        assert set(asked) == {"GET / 0"}
    (server.thaw if kind == "hung" else server.start)()


@pytest.mark.parametrize("kind", ["killed", "replaced", "hung"])
def test_an_outage_costs_one_warning_and_then_the_server_gets_all(
    server: VisdomServer, opened: Opened, folder: RunFolder, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(visdom, "TIMEOUT", (0.5, 0.5))
    with opened(server.port) as record:
        losses(record, 0)
        record.text("settings", "kept")
        eventually(lambda: "settings" in server.panes(ENV))
        for last in (200, 400):
            with outage(server, kind):
                losses(record, *range(last - 199, last))
                eventually(lambda count=last // 200: len(warnings(folder)) == count)
                losses(record, last)
            eventually(lambda end=last + 1: server.curves(ENV, "loss") == expected(*range(end)))
            eventually(lambda: "settings" in server.panes(ENV))
    assert len(warnings(folder)) == 2


@pytest.mark.parametrize("next_is", ["a point", "a text"])
def test_server_that_was_restarted_unnoticed_gets_all(server: VisdomServer, opened: Opened, next_is: str) -> None:
    with opened(server.port) as record:
        losses(record, 0, 1)
        record.text("settings", "kept")
        eventually(lambda: "settings" in server.panes(ENV))
        server.stop()
        server.start()
        losses(record, 2) if next_is == "a point" else record.text("settings", "newer")
    assert server.curves(ENV, "loss") == expected(0, 1, *([2] if next_is == "a point" else []))
    assert "settings" in server.panes(ENV)


def test_only_the_end_of_a_run_waits_for_a_server_and_that_within_its_budget(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sinks.SECONDS_TO_CLOSE, "visdom", 0.1)
    monkeypatch.setattr(visdom, "TIMEOUT", (3600.0, 3600.0))
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def run() -> None:
            with opened(listener.getsockname()[1]) as record:
                losses(record, 0)
                with listener.accept()[0]:  # and no answer
                    losses(record, *range(1, 300))
                    record.close()

        running = threading.Thread(target=run, daemon=True)
        running.start()
        running.join(60)
    assert not running.is_alive(), "the run waits for the server"


@pytest.mark.parametrize(("status", "page"), [(200, b"hello"), (200, b"[]" * 10**6), (404, b"hello"), (500, b"hello")])
def test_another_program_on_the_port_is_sent_nothing(
    opened: Opened, folder: RunFolder, status: int, page: bytes
) -> None:
    with other_program(status, page) as (port, asked):
        with opened(port) as record:
            losses(record, 1)
            eventually(lambda: len(asked) > 4)
            losses(record, 2)
        with pytest.raises(UserError, match=r"--visdom_port.*: something other than visdom.*: give visdom another"):
            show_on_visdom(folder, Server("localhost", port))
    assert set(asked) == {"GET / 0"}
    (line,) = warnings(folder)
    assert "something other than visdom" in line


def test_a_server_below_a_path(tmp_path: Path, opened: Opened, folder: RunFolder) -> None:
    server, base_url = VisdomServer(tmp_path, "/some/visdom"), "some/visdom/"
    try:
        with opened(server.port, visdom_base_url=base_url) as record:
            losses(record, 0, 1)
        assert ENV not in server.log.read_text()  # no traceback, which would name the environment, as it was a new one
        assert server.curves(ENV, "loss") == expected(0, 1)
        there = Server("localhost", server.port, base_url)
        assert there.command == f"visdom -p {server.port} -bind_local -base_url /some/visdom"
        assert ENV in requests.get(there.page(ENV), timeout=30).text.split("ACTIVE_ENV")[1]
        with pytest.raises(UserError, match="something other than visdom"):
            show_on_visdom(folder, Server("localhost", server.port))
    finally:
        server.stop()


def test_resumed_run_goes_on_where_it_was(server: VisdomServer, opened: Opened, folder: RunFolder) -> None:
    folder.path.mkdir(parents=True)
    folder.hparams.write_text("steps_per_checkpoint: 10\nsampler: absorbing\n")
    with opened(server.port) as record:
        losses(record, 0, 10, 20, 30)
        for step in (10, 20, 30):
            record.picture(step, "samples", np.full((3, 4, 4), step, np.uint8))
    server.forget(ENV)
    with opened(server.port, resume_step=20) as record:
        eventually(lambda: server.curves(ENV, "loss") == expected(0, 10, 20))
        losses(record, 30, 40)
        eventually(lambda: len(server.panes(ENV)["samples"]["content"]) == 2)
        record.picture(30, "samples", np.full((3, 4, 4), 30, np.uint8))
    assert server.curves(ENV, "loss") == expected(0, 10, 20, 30, 40)
    assert [picture["step"] for picture in server.panes(ENV)["samples"]["content"]] == [10, 20, 30]

    with opened(server.port) as record:  # from the beginning: the panes of the earlier run of its name go
        losses(record, 5)
    assert server.curves(ENV, "loss") == expected(5)
    assert list(server.panes(ENV)) == ["loss"]


@pytest.mark.parametrize("grid", [NOISE, NOISE[:, :64], np.zeros_like(NOISE), np.full((3, 1500, 3000), 9, np.uint8)])
def test_a_picture_is_never_large(grid: np.ndarray) -> None:
    for step in (5, None):
        content = message_of(step, grid)["data"][0]["content"]
        assert len(content["src"]) < 1_000_000
        assert content["src"].startswith("data:image/png" if not grid.any() else "data:image/")
        assert picture_of(content).shape[2] == min(1024, grid.shape[2])


@pytest.mark.parametrize(("shape", "rows"), [((300, 300), 2), ((300, 420), 2), ((100, 300), 2), ((60, 300), 1)])
def test_a_picture_ends_above_the_slider(shape: tuple[int, int], rows: int) -> None:
    """The pane scales a picture to its own size, less its bar, and centres it; the slider lies over its foot."""
    message = message_of(1, np.zeros((3, *shape), np.uint8))
    pixels = picture_of(message["data"][0]["content"])[0]
    width, height = message["opts"]["width"], message["opts"]["height"]
    assert height == messages.cells(2, rows)["height"]
    scale = min(width / pixels.shape[1], height / pixels.shape[0])
    foot = (height - scale * pixels.shape[0]) / 2 + scale * (np.flatnonzero((pixels == 0).any(1)).max() + 1)
    assert foot <= height - messages.SLIDER + 1


def test_looks_of_panes() -> None:
    panes = board.Board({}, messages.picture_message)
    for on in (False, True):
        panes._add(Curves(str(on), "t", "y", stacked=on, from_zero=on))
        panes.curves[str(on)] = {name: board.Curve([1], [2.0]) for name in ("a", "b")}
    panes._add(Bars("bars", "t", first=3))
    panes.histogram(1, "bars", np.array([5.0, float("inf"), -float("inf")]))
    ((usual,), (special,), (bars,)) = (messages.pane_messages(panes, window) for window in panes.panes)
    assert [{"stackgroup" in curve for curve in content["data"]} for content in (usual, special)] == [{False}, {True}]
    assert [content["layout"]["yaxis"]["rangemode"] for content in (usual, special)] == ["normal", "tozero"]
    assert usual["layout"]["yaxis"]["title"]["text"] == "y"
    assert bars["data"] == [{"type": "bar", "x": [3, 4, 5], "y": [5.0, None, None]}]
    words = [messages.text_message(text, "t") for text in ("", "x" * 50, "x" * 60, "\n" * 30)]
    sizes = [(content["opts"]["width"], content["opts"]["height"]) for content in (usual, bars, *words)]
    one_cell = messages.CELL
    wide, high = 2 * one_cell[0] + messages.GAP, 2 * one_cell[1] + messages.GAP
    assert sizes == [one_cell] * 4 + [(wide, one_cell[1]), (one_cell[0], high)]  # whole cells, to stand in rows
