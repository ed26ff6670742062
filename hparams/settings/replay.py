"""Settings of the command that shows a past run again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hparams.fields import setting
from hparams.settings.stages import Plain, SinkName


@dataclass(frozen=True)
class ReplaySettings:
    """Which past run to show, and where."""

    title: ClassVar[str] = "replay"

    log_dir: str | None = setting(None, help="run folder to show, under logs/", unit="run", none_means="required")
    visdom_server: str = setting("http://localhost", help="address of the visdom server, without its port", unit="url")
    visdom_port: int = setting(8097, help="port of the visdom server", unit="port", minimum=1, maximum=65535)
    visdom_base_url: str = setting(
        "/", help="path below which the visdom server answers, as its own -base_url", unit="path"
    )
    sinks: tuple[SinkName, ...] = setting(
        ("visdom", "summary"), help="what shows the run: a visdom server, summary.png, TensorBoard, Weights & Biases"
    )
    dry_run: bool = setting(False, help="check the settings, say what would be done, and stop", saved=False)
    traceback: bool = setting(False, help="show the traceback of an error above its line", saved=False)


@dataclass(frozen=True)
class Replay(Plain):
    """A past run, shown again."""

    replay: ReplaySettings
