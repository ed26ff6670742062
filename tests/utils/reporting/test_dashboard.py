"""The dashboard against a real visdom server on the loopback interface, in good health and in bad."""

from __future__ import annotations

import base64
import contextlib
import io
import itertools
import json
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import visdom
from PIL import Image

from browser import Browser
from hparams.errors import UserError
from utils.reporting import dashboard, panes, visdom_server
from utils.reporting.dashboard import Dashboard, environment, replay
from utils.reporting.panes import read_panes
from utils.reporting.visdom_server import Server
from visdom_process import VisdomServer, eventually, free_port, other_program

ENV = "churches~test"


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
def warnings() -> list[str]:
    return []


@pytest.fixture
def opened(tmp_path: Path, warnings: list[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Dashboard]:
    """Opens the dashboard of the one run that a test has. It waits long for a server that is slow to take all."""
    monkeypatch.setattr(dashboard, "SECONDS_TO_CLOSE", 60.0)

    def open_dashboard(port: int, **settings: Any) -> Dashboard:
        settings = {"retry_seconds": 0.05, "warn": warnings.append, **settings}
        return Dashboard("churches/test", tmp_path / "visdom.log", port=port, **settings)

    return open_dashboard


def losses(board: Dashboard, *steps: int) -> None:
    for step in steps:
        board.line("losses", step, {"train": 1 / (step + 1), "valid": 2.0}, title="losses", ylabel="nats")


def expected_losses(*steps: int) -> dict[str, list[tuple[float, float]]]:
    return {"train": [(step, panes.shown(1 / (step + 1))) for step in steps], "valid": [(step, 2.0) for step in steps]}


def logged(folder: Path) -> dict[str, list[tuple[float, float]]]:
    data = read_panes(folder / "visdom.log")["losses"]["data"]
    return {curve["name"]: list(zip(curve["x"], curve["y"], strict=True)) for curve in data}


def picture_of(pane: dict[str, Any]) -> np.ndarray:
    png = base64.b64decode(pane["src"].removeprefix("data:image/png;base64,"))
    return np.asarray(Image.open(io.BytesIO(png))).transpose(2, 0, 1)


def test_no_two_runs_share_an_environment() -> None:
    names = {"".join(letters) for length in range(6) for letters in itertools.product("a/~^_+", repeat=length)}
    assert len(set(map(environment, names))) == len(names)
    assert not any("/" in environment(name) for name in names)  # visdom would make it an underscore
    assert environment("demo/vqgan_churches") == "demo~vqgan_churches"
    assert environment("+2b ^2b '\"\\<>&#?%") == "^2b2b ^^2b ^27^22^5c^3c^3e^26^23^3f^25"


def test_runs_of_like_names_have_pages_of_their_own(server: VisdomServer, tmp_path: Path) -> None:
    for run in ("a/b", "a_b"):
        with Dashboard(run, tmp_path / "log", port=server.port, warn=print) as board:
            board.text("run", run, title="run")
    assert ">a/b<" in server.panes("a~b")["run"]["content"]
    assert ">a_b<" in server.panes("a_b")["run"]["content"]


def test_a_new_page_is_no_error_in_the_terminal_of_the_server(server: VisdomServer, tmp_path: Path) -> None:
    with Dashboard("first/of its name", tmp_path / "log", port=server.port, warn=print) as board:
        board.text("run", "anew", title="run")
    assert "run" in server.panes("first~of its name")
    assert "first~of its name" not in server.output()  # its tracebacks name the environment


def test_each_kind_of_pane_arrives(server: VisdomServer, opened: Callable[..., Dashboard], warnings: list[str]) -> None:
    grid = np.random.default_rng(0).integers(0, 256, (3, 30, 40), dtype=np.uint8)
    with opened(server.port) as board:
        losses(board, 0, 10, 20)
        board.images("samples", np.zeros_like(grid), title="samples, step 10")
        board.images("samples", grid, title="samples, step 20")
        board.bars("codes", np.array([3, 0, 1]), title="codebook", xlabel="code", ylabel="uses")
        board.text("settings", "lr  1e-4\nname <b>", title="settings")
    arrived = server.panes(ENV)
    assert server.curves(ENV, "losses") == expected_losses(0, 10, 20)
    assert arrived["losses"]["content"]["layout"]["yaxis"]["title"]["text"] == "nats"
    assert arrived["losses"]["title"] == "losses"
    assert arrived["samples"]["title"] == "samples, step 20"
    np.testing.assert_array_equal(picture_of(arrived["samples"]["content"]), grid)
    assert arrived["codes"]["content"]["data"][0]["y"] == [3, 0, 1]
    assert "lr  1e-4\nname &lt;b&gt;" in arrived["settings"]["content"]
    assert warnings == []


def test_points_that_come_faster_than_the_server_takes_them(
    server: VisdomServer, opened: Callable[..., Dashboard], warnings: list[str]
) -> None:
    with opened(server.port) as board:
        for start in range(0, 900, 100):
            losses(board, *range(start, start + 100))
            board.text("settings", str(start), title="settings")
    assert server.curves(ENV, "losses") == expected_losses(*range(900))
    assert ">800</pre>" in server.panes(ENV)["settings"]["content"]
    assert warnings == []


def test_curves_that_begin_late_or_pause(server: VisdomServer, opened: Callable[..., Dashboard]) -> None:
    with opened(server.port) as board:
        board.line("d", 0, {"real": 1.0}, title="d", ylabel="loss")
        board.line("d", 1, {"fake": 2.0}, title="d", ylabel="loss")
        board.line("d", 2, {"real": 3.0, "fake": 4.0}, title="d", ylabel="loss")
    assert server.curves(ENV, "d") == {"real": [(0, 1), (2, 3)], "fake": [(1, 2), (2, 4)]}


def test_values_that_no_browser_can_read_become_gaps(server: VisdomServer, opened: Callable[..., Dashboard]) -> None:
    with opened(server.port) as board:
        for step, value in enumerate([1.0, float("nan"), float("inf"), 2.0]):
            board.line("losses", step, {"train": value}, title="losses", ylabel="nats")
        board.bars("codes", [float("nan"), 1.0], title="codes", xlabel="code", ylabel="uses")
    assert server.curves(ENV, "losses") == {"train": [(0, 1), (1, None), (2, None), (3, 2)]}
    assert server.panes(ENV)["codes"]["content"]["data"][0]["y"] == [None, 1]


@pytest.mark.filterwarnings("ignore:The 'warn' method is deprecated")  # visdom's own
def test_without_a_server_the_log_has_everything_and_can_be_replayed(
    tmp_path: Path, opened: Callable[..., Dashboard], warnings: list[str], request: pytest.FixtureRequest
) -> None:
    port = free_port()
    grid = np.full((3, 8, 8), 77, np.uint8)
    with opened(port) as board:
        losses(board, *range(200))
        eventually(lambda: len(warnings) > 0)
        losses(board, 200)
        board.images("samples", grid, title="samples")
    assert len(warnings) == 1
    assert f"`visdom -p {port} -bind_local`" in warnings[0], "without it, the server is open to the network"
    assert warnings[0].endswith("or later by experiments/replay_dashboard.py")
    assert str(tmp_path / "visdom.log") in warnings[0]
    assert "\n" not in warnings[0]
    assert logged(tmp_path) == expected_losses(*range(201))

    server = request.getfixturevalue("server")
    for env in (ENV, "copied"):
        assert replay(tmp_path / "visdom.log", env, Server("localhost", server.port)) == 2
        assert server.curves(env, "losses") == expected_losses(*range(201))
        np.testing.assert_array_equal(picture_of(server.panes(env)["samples"]["content"]), grid)
        server.forget(env)

    logging.getLogger("visdom").setLevel(logging.ERROR)
    client = visdom.Visdom(port=server.port, use_incoming_socket=False, raise_exceptions=True)
    client.replay_log(str(tmp_path / "visdom.log"))
    assert server.curves(ENV, "losses") == expected_losses(*range(201))
    np.testing.assert_array_equal(picture_of(server.panes(ENV)["samples"]["content"]), grid)


def test_killed_server_costs_one_warning_and_its_successor_gets_all(
    tmp_path: Path, server: VisdomServer, opened: Callable[..., Dashboard], warnings: list[str]
) -> None:
    with opened(server.port) as board:
        losses(board, 0, 1)
        board.text("settings", "kept", title="settings")
        eventually(lambda: "settings" in server.panes(ENV))
        for outage in (1, 2):
            server.stop()
            losses(board, *range(2 * outage, 2 * outage + 1))
            eventually(lambda expected=outage: len(warnings) == expected)
            losses(board, *range(2 * outage + 1, 2 * outage + 2))
            server.start()
            eventually(lambda last=2 * outage + 2: server.curves(ENV, "losses") == expected_losses(*range(last)))
            eventually(lambda: "settings" in server.panes(ENV))
        assert len(warnings) == 2
    assert logged(tmp_path) == expected_losses(*range(6))


def test_server_that_was_restarted_unnoticed_gets_all(server: VisdomServer, opened: Callable[..., Dashboard]) -> None:
    with opened(server.port) as board:
        losses(board, 0, 1)
        board.text("settings", "kept", title="settings")
        eventually(lambda: "settings" in server.panes(ENV))
        server.stop()
        server.start()
        losses(board, 2)
    assert server.curves(ENV, "losses") == expected_losses(0, 1, 2)
    assert "settings" in server.panes(ENV)


def test_hung_server_does_not_hold_up_the_run(
    tmp_path: Path,
    server: VisdomServer,
    opened: Callable[..., Dashboard],
    warnings: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(visdom_server, "TIMEOUT", (0.5, 0.5))
    with opened(server.port) as board:
        losses(board, 0)
        eventually(lambda: server.curves(ENV, "losses") == expected_losses(0))
        server.freeze()
        losses(board, *range(1, 300))
        assert logged(tmp_path) == expected_losses(*range(300))
        eventually(lambda: len(warnings) == 1)
        server.thaw()
        eventually(lambda: server.curves(ENV, "losses") == expected_losses(*range(300)))
        losses(board, 300)
    assert server.curves(ENV, "losses") == expected_losses(*range(301))
    assert len(warnings) == 1


@pytest.mark.parametrize("fault", ["gone", "hung", "dies at each request"])
def test_only_the_end_of_a_run_waits_for_the_server_and_that_within_its_budget(
    tmp_path: Path, opened: Callable[..., Dashboard], monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr(dashboard, "SECONDS_TO_CLOSE", 0.1)
    monkeypatch.setattr(visdom_server, "TIMEOUT", (3600.0, 3600.0))
    request, asking = requests.Session.request, set()

    def requesting(*arguments: Any, **options: Any) -> requests.Response:
        asking.add(threading.current_thread().name)
        return request(*arguments, **options)

    monkeypatch.setattr(requests.Session, "request", requesting)

    def run() -> None:
        with opened(port) as board:
            losses(board, 0)
            eventually(lambda: len(asking) > 0)
            losses(board, *range(1, 300))

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
    assert asking == {"dashboard"}
    assert logged(tmp_path) == expected_losses(*range(300))


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
    tmp_path: Path,
    opened: Callable[..., Dashboard],
    warnings: list[str],
    status: int,
    page: bytes,
    resume_step: int | None,
) -> None:
    with Dashboard("earlier", tmp_path / "visdom.log", None, warn=print) as board:
        losses(board, 0)
    with other_program(status, page) as (port, asked):
        with opened(port, resume_step=resume_step) as board:
            losses(board, 1)
            eventually(lambda: len(asked) > 4)
            losses(board, 2)
        with pytest.raises(UserError, match=r"--visdom_port.*: something other than visdom.*: correct them"):
            replay(tmp_path / "visdom.log", ENV, Server("localhost", port))
    assert set(asked) == {"GET / 0"}
    assert len(warnings) == 1
    assert "something other than visdom" in warnings[0]
    assert logged(tmp_path) == expected_losses(*range(0 if resume_step == 0 else 1, 3))


def test_another_program_that_takes_the_place_of_a_server_is_sent_nothing_after_the_outage(
    server: VisdomServer, opened: Callable[..., Dashboard], warnings: list[str]
) -> None:
    with opened(server.port) as board:
        losses(board, 0)
        eventually(lambda: server.curves(ENV, "losses") == expected_losses(0))
        server.stop()
        losses(board, 1)
        eventually(lambda: len(warnings) == 1)
        with other_program(200, b"hello", server.port) as (_, asked):
            losses(board, 2)
            eventually(lambda: len(asked) > 4)
        server.start()
    assert set(asked) == {"GET / 0"}
    assert server.curves(ENV, "losses") == expected_losses(0, 1, 2)


def test_without_a_dashboard_nothing_is_sent_and_the_log_has_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warnings: list[str]
) -> None:
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("something is asked"))
    with Dashboard("run", tmp_path / "visdom.log", None, warn=warnings.append) as board:
        losses(board, *range(200))
        assert "dashboard" not in {thread.name for thread in threading.enumerate()}
    assert logged(tmp_path) == expected_losses(*range(200))
    assert warnings == []


@pytest.mark.parametrize("base_url", ["/some/visdom", "some/visdom/"])
def test_a_server_below_a_path(tmp_path: Path, base_url: str, opened: Callable[..., Dashboard]) -> None:
    server = VisdomServer(tmp_path, "/some/visdom")
    try:
        with opened(server.port, base_url=base_url) as board:
            losses(board, 0, 1)
        assert server.curves(ENV, "losses") == expected_losses(0, 1)
        server.forget(ENV)
        visdom_there = Server("localhost", server.port, base_url)
        assert replay(tmp_path / "visdom.log", ENV, visdom_there) == 1
        assert server.curves(ENV, "losses") == expected_losses(0, 1)
        assert visdom_there.command == f"visdom -p {server.port} -bind_local -base_url /some/visdom"
        assert ENV in requests.get(visdom_there.page(ENV), timeout=30).text.split("ACTIVE_ENV")[1]
        with pytest.raises(UserError, match="something other than visdom"):
            replay(tmp_path / "visdom.log", ENV, Server("localhost", server.port))
    finally:
        server.stop()


def test_resumed_run_goes_on_where_it_was(
    tmp_path: Path, server: VisdomServer, opened: Callable[..., Dashboard]
) -> None:
    log_file = tmp_path / "visdom.log"
    with opened(server.port) as board:
        losses(board, 0, 10, 20, 30)
        for shade in (1, 2, 3):
            board.images("samples", np.full((3, 4, 4), shade, np.uint8), title="samples")
    with log_file.open("a") as log:
        log.write('["update", {"win": "losses", "eid"')  # killed while writing
    assert logged(tmp_path) == expected_losses(0, 10, 20, 30)

    with opened(server.port, resume_step=20) as board:
        assert logged(tmp_path) == expected_losses(0, 10, 20)
        assert log_file.read_text().count("data:image/png") == 1
        losses(board, 20, 30, 40)
    assert server.curves(ENV, "losses") == expected_losses(0, 10, 20, 30, 40)
    assert logged(tmp_path) == expected_losses(0, 10, 20, 30, 40)
    assert picture_of(server.panes(ENV)["samples"]["content"]).max() == 3

    with opened(server.port) as board:  # from the beginning
        losses(board, 5)
    assert logged(tmp_path) == expected_losses(5)
    assert server.curves(ENV, "losses") == expected_losses(5)
    assert [path.name for path in tmp_path.glob("visdom.log*")] == ["visdom.log"]


def test_a_new_run_replaces_the_panes_of_an_earlier_one_of_its_name(
    tmp_path: Path, server: VisdomServer, opened: Callable[..., Dashboard]
) -> None:
    with opened(server.port) as board:
        losses(board, 0)
        board.text("settings", "old", title="settings")
    with opened(server.port) as board:
        losses(board, 1)
    assert list(server.panes(ENV)) == ["losses"]
    server.post("events", {"win": "other", "eid": ENV, "data": [{"type": "text", "content": "old"}], "opts": {}})
    assert replay(tmp_path / "visdom.log", ENV, Server("localhost", server.port)) == 1
    assert list(server.panes(ENV)) == ["losses"]


def test_a_folder_that_was_renamed_goes_on_under_its_new_name(
    tmp_path: Path, server: VisdomServer, opened: Callable[..., Dashboard]
) -> None:
    """Its panes are all there, and a reserved place does not take the content of what is there already."""
    with Dashboard("old", tmp_path / "visdom.log", port=free_port(), warn=lambda _: None) as board:
        losses(board, 0)
    with opened(server.port, resume_step=0) as board:
        board.reserve("losses", panes.curves(["train", "valid"], "losses", "step", "nats"))
        losses(board, 1)
    assert server.curves(ENV, "losses") == logged(tmp_path) == expected_losses(0, 1)
    assert server.panes("old") == {}


def test_the_server_keeps_the_pictures_that_the_log_keeps(
    tmp_path: Path, server: VisdomServer, opened: Callable[..., Dashboard]
) -> None:
    with opened(server.port) as board:
        for step in range(panes.MOST_PICTURES + 3):
            board.images("samples", np.full((3, 4, 4), step, np.uint8), title="samples", step=step)
            eventually(lambda: not board._pending)  # each by itself
    kept = [picture["content"]["step"] for picture in read_panes(tmp_path / "visdom.log")["samples"]["data"]]
    assert len(kept) < panes.MOST_PICTURES
    shown = server.panes(ENV)["samples"]["content"]
    assert [picture["step"] for picture in shown] == kept


def test_few_events_of_a_pane_wait_for_a_server(opened: Callable[..., Dashboard], warnings: list[str]) -> None:
    with opened(free_port(), retry_seconds=3600) as board:
        losses(board, 0)
        eventually(lambda: len(warnings) > 0)
        losses(board, *range(1, 10 * dashboard.LONGEST_BACKLOG))
        assert len(board._pending["losses"]) <= dashboard.LONGEST_BACKLOG


def test_log_keeps_small(tmp_path: Path, opened: Callable[..., Dashboard], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dashboard, "SLACK_BYTES", 100_000)
    rng = np.random.default_rng(0)
    with opened(free_port()) as board:
        losses(board, 0)
        for _ in range(40):
            grid = rng.integers(0, 256, (3, 64, 64), dtype=np.uint8)  # noise: 16 kB each
            board.images("samples", grid, title="samples")
        losses(board, 1)
    assert (tmp_path / "visdom.log").stat().st_size < 200_000
    assert logged(tmp_path) == expected_losses(0, 1)
    pane = read_panes(tmp_path / "visdom.log")["samples"]["data"][0]["content"]
    np.testing.assert_array_equal(picture_of(pane), grid)


def test_long_curves_are_thinned_evenly(tmp_path: Path, opened: Callable[..., Dashboard]) -> None:
    with opened(free_port()) as board:
        for step in range(0, 200_000, 10):
            board.line("losses", step, {"train": 0.0}, title="losses", ylabel="nats")
    steps = [step for step, _ in logged(tmp_path)["train"]]
    assert len(steps) < 5000
    assert steps[:900] == list(range(0, 9000, 10))
    assert max(np.diff(steps)) <= 200_000 / panes.RESOLUTION + 10
    assert steps[-1] > 199_000


def test_large_grids_are_scaled_down(tmp_path: Path, opened: Callable[..., Dashboard]) -> None:
    with opened(free_port()) as board:
        board.images("samples", np.full((3, 600, 1200), 9, np.uint8), title="samples")
    pane = read_panes(tmp_path / "visdom.log")["samples"]["data"][0]["content"]
    np.testing.assert_array_equal(picture_of(pane), np.full((3, 384, 768), 9))


def test_grids_must_be_pictures(opened: Callable[..., Dashboard]) -> None:
    with opened(free_port()) as board:
        with pytest.raises(ValueError, match=r"uint8 \[3,H,W\], got float32 \[3, 4, 4\]"):
            board.images("samples", np.zeros((3, 4, 4), np.float32), title="samples")
        with pytest.raises(ValueError, match=r"got uint8 \[4, 4, 3\]"):
            board.images("samples", np.zeros((4, 4, 3), np.uint8), title="samples")


def test_user_errors_name_flag_or_file(tmp_path: Path, opened: Callable[..., Dashboard]) -> None:
    with pytest.raises(UserError, match="--visdom_server"):
        opened(8097, server="http://[::")
    with pytest.raises(UserError, match=r"nowhere\.log"):
        replay(tmp_path / "nowhere.log", ENV, Server("localhost", 9))
    event = ["events", {"win": "w", "eid": "e", "data": [{"type": "text"}]}]
    (tmp_path / "one.log").write_text(json.dumps(event) + "\n")
    with pytest.raises(UserError, match=r"--visdom_port.*`visdom -p \d+ -bind_local`"):
        replay(tmp_path / "one.log", ENV, Server("localhost", free_port()))


def test_browser_draws_the_panes(
    tmp_path: Path, server: VisdomServer, opened: Callable[..., Dashboard], artefacts: Path
) -> None:
    browser = Browser(tmp_path, 1200, 800)
    red = np.zeros((3, 64, 64), np.uint8)
    red[0] = 255
    with opened(server.port) as board:
        losses(board, *range(0, 100, 10))
        board.images("samples", red, title="samples")
        board.bars("codes", [1, 2, 3], title="codebook", xlabel="code", ylabel="uses")
        board.table("results", ["FID", "temp"], [[4.07, 0.9], [5.58, 1.0]], title="results")
    browser.open(f"http://127.0.0.1:{server.port}/env/{ENV}")
    browser.panes(4)
    browser.screenshot(artefacts / "each_kind_of_pane.png")
    browser.close()
    drawn = np.asarray(Image.open(artefacts / "each_kind_of_pane.png").convert("RGB")).reshape(-1, 3)
    assert 64 * 63 < (drawn == [255, 0, 0]).all(axis=1).sum() <= 64 * 65  # whole, but for the handle in the corner
    plotly_blue, plotly_orange = [31, 119, 180], [255, 127, 14]  # bars and first curve, second curve
    assert (drawn == plotly_blue).all(axis=1).sum() > 2000
    assert (drawn == plotly_orange).all(axis=1).sum() > 20
    assert browser.errors == []
