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

from browser import Browser
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


def test_a_new_page_is_no_error_in_the_terminal_of_the_server(server: VisdomServer, tmp_path: Path) -> None:
    folder = RunFolder("first/of its name", tmp_path)
    with contextlib.closing(Record(folder, resume_step=None)) as record:
        record.text("run", "anew")
    assert show_on_visdom(folder, Server("localhost", server.port)) == 1
    assert "run" in server.panes("first~of its name")
    assert "first~of its name" not in server.output()  # its tracebacks name the environment


def test_each_kind_of_pane_arrives(server: VisdomServer, opened: Opened, folder: RunFolder) -> None:
    """And of what comes faster than the server takes it, all points, and the newest of the rest."""
    grid = NOISE[:, :30, :40]
    with opened(server.port) as record:
        losses(record, *range(900))
        record.picture(None, "inpainted", np.zeros_like(grid))
        record.picture(None, "inpainted", grid)
        record.histogram(20, "code_counts", [3, float("nan"), 1])
        record.text("settings", "lr  1e-3")
        record.text("settings", "lr  1e-4\nname <b> caf\udce9")
        record.table("more", ["FID", "<split>"], [[4.068123, "train"], [None, 3]])
    arrived = server.panes(ENV)
    assert server.curves(ENV, "loss") == expected(*range(900))
    assert arrived["inpainted"]["title"] == "images, what is given of them, completions"
    np.testing.assert_array_equal(picture_of(arrived["inpainted"]["content"]), grid)
    assert arrived["code_counts"]["content"]["data"][0]["y"] == [3, None, 1]
    assert r">lr  1e-4\nname &lt;b&gt; caf\udce9</pre>".replace(r"\n", "\n") in arrived["settings"]["content"]
    assert ">FID    &lt;split&gt;\n4.068  train\n       3</pre>" in arrived["more"]["content"]
    assert warnings(folder) == []


def test_curves_that_begin_late_pause_or_have_gaps(server: VisdomServer, opened: Opened) -> None:
    with opened(server.port) as record:
        record.scalars(0, "real", {"d": 1.0})
        record.scalars(1, "fake", {"d": 2.0})
        eventually(lambda: "fake" in server.curves(ENV, "d"))
        record.scalars(2, "real", {"d": float("nan")})
        record.scalars(2, "fake", {"d": float("inf")})
        record.scalars(3, "fake", {"d": 4.0})
    assert server.curves(ENV, "d") == {"real": [(0, 1), (2, None)], "fake": [(1, 2), (2, None), (3, 4)]}


def test_without_a_server_one_line_says_so_and_the_folder_can_be_shown_later(
    folder: RunFolder, opened: Opened, request: pytest.FixtureRequest
) -> None:
    port = free_port()
    grid = np.full((3, 8, 8), 77, np.uint8)
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


def test_killed_server_costs_one_warning_and_its_successor_gets_all(
    server: VisdomServer, opened: Opened, folder: RunFolder
) -> None:
    with opened(server.port) as record:
        losses(record, 0, 1)
        record.text("settings", "kept")
        eventually(lambda: "settings" in server.panes(ENV))
        for outage in (1, 2):
            server.stop()
            losses(record, 2 * outage)
            eventually(lambda count=outage: len(warnings(folder)) == count)
            losses(record, 2 * outage + 1)
            server.start()
            eventually(lambda last=2 * outage + 2: server.curves(ENV, "loss") == expected(*range(last)))
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
        if next_is == "a point":
            losses(record, 2)
        else:
            record.text("settings", "newer")
    assert server.curves(ENV, "loss") == expected(0, 1, *([2] if next_is == "a point" else []))
    assert "settings" in server.panes(ENV)


def test_hung_server_does_not_hold_up_the_run(
    server: VisdomServer, opened: Opened, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(visdom, "TIMEOUT", (0.5, 0.5))
    with opened(server.port) as record:
        losses(record, 0)
        eventually(lambda: server.curves(ENV, "loss") == expected(0))
        server.freeze()
        losses(record, *range(1, 300))
        eventually(lambda: len(warnings(folder)) == 1)
        server.thaw()
        eventually(lambda: server.curves(ENV, "loss") == expected(*range(300)))
        losses(record, 300)
    assert server.curves(ENV, "loss") == expected(*range(301))
    assert len(warnings(folder)) == 1


@pytest.mark.parametrize("fault", ["gone", "hung", "dies at each request"])
def test_only_the_end_of_a_run_waits_for_the_server_and_that_within_its_budget(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setitem(sinks.SECONDS_TO_CLOSE, "visdom", 0.1)
    monkeypatch.setattr(visdom, "TIMEOUT", (3600.0, 3600.0))
    request, asking = requests.Session.request, set()

    def requesting(*arguments: Any, **options: Any) -> requests.Response:
        asking.add(threading.current_thread().name)
        return request(*arguments, **options)

    monkeypatch.setattr(requests.Session, "request", requesting)

    def run() -> None:
        with opened(port) as record:
            losses(record, 0)
            eventually(lambda: len(asking) > 0)
            losses(record, *range(1, 300))

    with socket.create_server(("127.0.0.1", 0)) as listener:  # which takes connections, and never answers
        port = int(listener.getsockname()[1])
        if fault == "gone":
            listener.close()
        elif fault == "dies at each request":
            threading.Thread(target=hang_up, args=(listener,), daemon=True).start()
        running = threading.Thread(target=run, name="run", daemon=True)
        running.start()
        running.join(60)
        assert not running.is_alive(), "the run waits for the server"
    assert asking == {"visdom"}


def hang_up(listener: socket.socket) -> None:
    """Close each connection as soon as it is asked for something, until there are no more."""
    with contextlib.suppress(OSError):
        while True:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1)


@pytest.mark.parametrize(("status", "page"), [(200, b"hello"), (200, b"[]" * 10**6), (404, b"hello"), (500, b"hello")])
@pytest.mark.parametrize("resume_step", [None, 0])
def test_another_program_on_the_port_is_sent_nothing(
    opened: Opened, folder: RunFolder, status: int, page: bytes, resume_step: int | None
) -> None:
    with other_program(status, page) as (port, asked):
        with opened(port, resume_step) as record:
            losses(record, 1)
            eventually(lambda: len(asked) > 4)
            losses(record, 2)
        with pytest.raises(UserError, match=r"--visdom_port.*: something other than visdom.*: give visdom another"):
            show_on_visdom(folder, Server("localhost", port))
    assert set(asked) == {"GET / 0"}
    (line,) = warnings(folder)
    assert "something other than visdom" in line


def test_another_program_that_takes_the_place_of_a_server_is_sent_nothing_after_the_outage(
    server: VisdomServer, opened: Opened, folder: RunFolder
) -> None:
    with opened(server.port) as record:
        losses(record, 0)
        eventually(lambda: server.curves(ENV, "loss") == expected(0))
        server.stop()
        losses(record, 1)
        eventually(lambda: len(warnings(folder)) == 1)
        with other_program(200, b"hello", server.port) as (_, asked):
            losses(record, 2)
            eventually(lambda: len(asked) > 4)
        server.start()
    assert set(asked) == {"GET / 0"}
    assert server.curves(ENV, "loss") == expected(0, 1, 2)


def test_a_server_below_a_path(tmp_path: Path, opened: Opened, folder: RunFolder) -> None:
    server, base_url = VisdomServer(tmp_path, "/some/visdom"), "some/visdom/"
    try:
        with opened(server.port, visdom_base_url=base_url) as record:
            losses(record, 0, 1)
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
    assert server.curves(ENV, "loss") == expected(0, 10, 20, 30, 40)
    assert [picture["step"] for picture in server.panes(ENV)["samples"]["content"]] == [10, 20]

    with opened(server.port) as record:  # from the beginning: the panes of the earlier run of its name go
        losses(record, 5)
    assert server.curves(ENV, "loss") == expected(5)
    assert list(server.panes(ENV)) == ["loss"]


def test_the_server_keeps_the_pictures_that_the_run_keeps(server: VisdomServer, opened: Opened) -> None:
    with opened(server.port) as record:
        for step in range(board.MOST_PICTURES + 3):
            record.picture(step, "samples", np.full((3, 4, 4), step, np.uint8), write=False)
            eventually(lambda last=step: steps(server)[-1:] == [last])  # each by itself
    assert steps(server) == [*range(0, board.MOST_PICTURES, 2), *range(board.MOST_PICTURES, board.MOST_PICTURES + 3)]


def steps(server: VisdomServer) -> list[int]:
    content = server.panes(ENV).get("samples", {"content": []})["content"]
    return [picture["step"] for picture in content]


def test_user_errors_name_the_flag(folder: RunFolder) -> None:
    with pytest.raises(UserError, match="--visdom_server"):
        Server("http://[::", 8097)
    with pytest.raises(UserError, match=r"--visdom_port.*`visdom -p \d+ -bind_local`.*--sinks summary"):
        show_on_visdom(folder, Server("localhost", free_port()))


def test_browser_draws_the_panes(tmp_path: Path, server: VisdomServer, opened: Opened, artefacts: Path) -> None:
    browser = Browser(tmp_path, 1200, 800)
    red, green = (np.zeros((3, 64, 64), np.uint8) for _ in range(2))
    red[0] = green[1] = 255
    with opened(server.port) as record:
        for split in ("train", "val"):
            for step in range(0, 100, 10):
                record.scalars(step, split, {"new": 1 / (step + (1 if split == "train" else 5))})
        record.picture(None, "alone", red)
        for step in (5, 10):
            record.picture(step, "square", green, write=False)
        record.picture(5, "wide", np.tile(green, (1, 1, 5)), write=False)
        record.histogram(1, "codes", [1, 2, 3])
        record.table("more", ["FID", "temp"], [[4.07, 0.9], [5.58, 1.0]])
    browser.open(f"http://127.0.0.1:{server.port}/env/{ENV}")
    panes = {pane["title"]: pane["text"] for pane in browser.panes(6)}
    browser.screenshot(artefacts / "each_kind_of_pane.png")
    browser.close()
    assert ["step 10" in panes["square"], "step 5" in panes["wide"]] == [True, True]
    drawn = np.asarray(Image.open(artefacts / "each_kind_of_pane.png").convert("RGB")).reshape(-1, 3)
    plotly_blue, plotly_orange = [31, 119, 180], [255, 127, 14]  # bars and first curve, second curve
    counts = [(drawn == c).all(axis=1).sum() for c in ([255, 0, 0], [0, 255, 0], plotly_blue, plotly_orange)]
    assert 64 * 63 < counts[0] <= 64 * 65  # whole, but for the handle in the corner
    assert counts[1] > 400 * 400
    assert counts[2] > 2000
    assert counts[3] > 20
    assert browser.errors == []


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
