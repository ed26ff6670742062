from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pytest

from hparams.fields import as_text, from_text, from_yaml, setting, settings_of


@dataclass(frozen=True)
class Group:
    count: int = setting(3, help="a count", minimum=1, maximum=9)
    share: float = setting(0.5, help="a share", minimum=0, below=1)
    rate: float = setting(0.1, help="a rate", above=0)
    kind: Literal["one", "two"] = setting("one", help="a kind")
    sizes: tuple[int, ...] = setting((1, 2), help="sizes", minimum=1)
    sides: tuple[int, ...] = setting((1,), help="sides", minimum=1, allow_empty=True)
    name: str | None = setting(None, help="a name")
    on: bool | None = setting(None, help="a switch")
    length: int = setting(None, help="a length", none_means="count")


@dataclass(frozen=True)
class Single:
    group: Group


SETTINGS = settings_of(Single)


def test_reads_types_from_annotations() -> None:
    kinds = {name: (item.kind, item.many, item.optional) for name, item in SETTINGS.items()}
    assert kinds == {
        "count": (int, False, False),
        "share": (float, False, False),
        "rate": (float, False, False),
        "kind": (str, False, False),
        "sizes": (int, True, False),
        "sides": (int, True, False),
        "name": (str, False, True),
        "on": (bool, False, True),
        "length": (int, False, False),
    }
    assert SETTINGS["kind"].choices == ("one", "two")
    assert SETTINGS["sizes"].flag == "--sizes"


def test_refuses_a_name_in_two_groups() -> None:
    @dataclass(frozen=True)
    class Twice:
        first: Group
        second: Group

    Twice.__annotations__.update(first=Group, second=Group)
    with pytest.raises(TypeError, match="count is in both first and second"):
        settings_of(Twice)


@pytest.mark.parametrize("annotation", [dict, list[int], int | str, bytes, tuple[dict, ...]])
def test_refuses_other_types(annotation: object) -> None:
    broken: type = dataclass(frozen=True)(
        type("Broken", (), {"__annotations__": {"x": annotation}, "x": setting(None, help="")})
    )
    stage: type = dataclass(frozen=True)(type("Stage", (), {"__annotations__": {"group": broken}}))
    with pytest.raises(TypeError, match="not a type of settings"):
        settings_of(stage)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [("count", "1", 1), ("count", "9", 9), ("share", "0", 0.0), ("rate", "1e-9", 1e-9), ("kind", "two", "two")],
)
def test_from_text(name: str, text: str, value: object) -> None:
    got = from_text(SETTINGS[name], text)
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("count", "0", "'0' is not a whole number of at least 1 and of at most 9"),
        ("count", "10", "'10' is not a whole number of at least 1 and of at most 9"),
        ("count", "2.0", "'2.0' is not a whole number"),
        ("share", "1", "'1' is not a number of at least 0 and below 1"),
        ("rate", "0", "'0' is not a number above 0"),
        ("rate", "nan", "'nan' is not a number above 0"),
        ("rate", "inf", "'inf' is not a number above 0"),
        ("rate", "fast", "'fast' is not a number above 0"),
        ("kind", "tow", "'tow' is not one of one, two (did you mean two?)"),
    ],
)
def test_from_text_says_what_is_allowed(name: str, text: str, message: str) -> None:
    with pytest.raises(ValueError) as error:
        from_text(SETTINGS[name], text)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("count", 2, 2),
        ("share", 0, 0.0),
        ("rate", "1e-8", 1e-8),
        ("sizes", [4, 5], (4, 5)),
        ("sides", [], ()),
        ("name", None, None),
        ("on", False, False),
        ("length", None, None),
    ],
)
def test_from_yaml(name: str, value: object, expected: object) -> None:
    got = from_yaml(SETTINGS[name], value)
    assert got == expected
    assert type(got) is type(expected)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("count", True),
        ("count", "2"),
        ("count", 2.5),
        ("count", None),
        ("count", [1]),
        ("share", 1.5),
        ("share", True),
        ("rate", float("inf")),
        ("kind", "three"),
        ("kind", 1),
        ("sizes", 4),
        ("sizes", []),
        ("sizes", [0]),
        ("sizes", ["4"]),
        ("name", 3),
        ("on", 1),
        ("on", "yes"),
    ],
)
def test_from_yaml_refuses(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=r"is not"):
        from_yaml(SETTINGS[name], value)


def test_as_text() -> None:
    values = {(1, 2): "1 2", (): "none", None: "none", 4.5e-6: "4.5e-06", 0.1 + 0.2: "0.30000000000000004", "a": "a"}
    assert {value: as_text(value) for value in values} == values
    assert as_text(True) == "on"
    assert as_text(False) == "off"
    assert as_text(2_200_000) == "2200000"
