from __future__ import annotations

import re
from dataclasses import dataclass, make_dataclass
from typing import Any, Literal

import pytest

from hparams import fields
from hparams.fields import as_text, from_text, from_yaml, setting, settings_of


@dataclass(frozen=True)
class Group(fields.Group, title="examples"):
    count: int = setting(3, "a count", minimum=1, maximum=9)
    share: float = setting(0.5, "a share", minimum=0, below=1)
    rate: float = setting(0.1, "a rate", above=0)
    kind: Literal["one", "two"] = setting("one", "a kind")
    sizes: tuple[int, ...] = setting((1, 2), "sizes", minimum=1)
    sides: tuple[int, ...] = setting((1,), "sides", minimum=1, allow_empty=True)
    name: str | None = setting(None, "a name", subject="names")
    on: bool | None = setting(None, "a switch")
    length: int = setting(None, "a length", none_means="count")


def stage_of(**groups: type) -> type:
    return make_dataclass("Example", groups.items())


SETTINGS = settings_of(stage_of(group=Group))


def test_reads_types_from_annotations() -> None:
    kinds = {name: (item.kind, item.many, item.optional) for name, item in SETTINGS.items()}
    assert list(kinds) == ["count", "share", "rate", "kind", "sizes", "sides", "name", "on", "length"]
    assert kinds["count"] == kinds["length"] == (int, False, False)
    assert kinds["share"] == kinds["rate"] == (float, False, False)
    assert kinds["sizes"] == kinds["sides"] == (int, True, False)
    assert (kinds["kind"], kinds["name"], kinds["on"]) == ((str, False, False), (str, False, True), (bool, False, True))
    assert SETTINGS["kind"].choices == ("one", "two")
    assert SETTINGS["sizes"].flag == "--sizes"
    assert (SETTINGS["sizes"].subject, SETTINGS["name"].subject) == ("examples", "names")


def test_refuses_a_name_in_two_groups() -> None:
    with pytest.raises(TypeError, match="count is in both first and second"):
        settings_of(stage_of(first=Group, second=Group))


@pytest.mark.parametrize("annotation", [dict, list[int], int | str, bytes, tuple[dict, ...]])
def test_refuses_other_types(annotation: Any) -> None:
    with pytest.raises(TypeError, match="not a type of settings"):
        settings_of(stage_of(group=make_dataclass("Broken", [("x", annotation, setting(None, ""))])))


def test_from_text() -> None:
    given = {"count": "9", "share": "0", "rate": "1e-9", "kind": "two"}
    got = [from_text(SETTINGS[name], text) for name, text in given.items()]
    assert repr(got) == repr([9, 0.0, 1e-9, "two"])  # of the right types, too
    assert from_text(SETTINGS["count"], "1") == 1


def test_from_text_says_what_is_allowed() -> None:
    for name, text, allowed in (
        ("count", "0", "a whole number of at least 1 and of at most 9"),
        ("count", "10", "a whole number of at least 1 and of at most 9"),
        ("count", "2.0", "a whole number"),
        ("share", "1", "a number of at least 0 and below 1"),
        *(("rate", text, "a number above 0") for text in ("0", "nan", "inf", "fast")),
        ("kind", "tow", "one of one, two (did you mean two?)"),
    ):
        with pytest.raises(ValueError, match=rf"^'{text}' is not {re.escape(allowed)}"):
            from_text(SETTINGS[name], text)


def test_from_yaml() -> None:
    given = {"count": 2, "share": 0, "rate": "1e-8", "sizes": [4, 5], "sides": [], "name": None, "on": False}
    got = {name: from_yaml(SETTINGS[name], value) for name, value in (given | {"length": None}).items()}
    expected = {"count": 2, "share": 0.0, "rate": 1e-8, "sizes": (4, 5), "sides": (), "name": None, "on": False}
    assert repr(got) == repr(expected | {"length": None})  # of the right types, too


REFUSED: dict[str, list[Any]] = {
    "count": [True, "2", 2.5, None, [1]],
    "share": [1.5, True],
    "rate": [float("inf")],
    "kind": ["three", 1],
    "sizes": [4, [], [0], ["4"]],
    "name": [3],
    "on": [1, "yes"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in REFUSED.items() for value in values])
def test_from_yaml_refuses(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=r"is not"):
        from_yaml(SETTINGS[name], value)


def test_as_text() -> None:
    values = {(1, 2): "1 2", (): "none", None: "none", 4.5e-6: "4.5e-06", 0.1 + 0.2: "0.30000000000000004", "a": "a"}
    assert {value: as_text(value) for value in values} == values
    assert (as_text(True), as_text(False), as_text(2_200_000)) == ("on", "off", "2200000")
