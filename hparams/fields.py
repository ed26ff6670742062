"""What one setting is: its type, default, range and help, read from a dataclass field.

A group is a frozen dataclass whose fields are made by :func:`setting`; a stage is a frozen dataclass whose fields are
groups. The command line, the saved file, the range checks and ``--help`` all come from these descriptions, so a new
setting is one new field.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import numbers
import operator
import types
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, ClassVar

_METADATA_KEY = "setting"
_NOUNS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
_LIMITS = {
    "minimum": ("of at least", operator.ge),
    "above": ("above", operator.gt),
    "maximum": ("of at most", operator.le),
    "below": ("below", operator.lt),
}


class Group:
    """Settings that belong together. `class X(Group, title="x")` names them for ``--help`` and ``hparams.yaml``."""

    title: ClassVar[str]

    def __init_subclass__(cls, title: str) -> None:
        cls.title = title


@dataclass(frozen=True)
class Setting:
    """One setting of a stage. Limits apply to each value of a tuple."""

    default: Any
    help: str
    unit: str = ""  # shown as the value's name in --help
    none_means: str = ""  # what the default None stands for; where the type does not allow None, resolving fills it in
    minimum: float | None = None  # of whole numbers 1 unless another is given
    maximum: float | None = None
    above: float | None = None
    below: float | None = None
    saved: bool = True  # False: describes one call, not the run; never written to or read from a run folder
    allow_empty: bool = False
    subject: str = ""  # under which --help lists it; by default its group's title
    # Read from the field's place and annotation.
    name: str = ""
    group: str = ""  # attribute of the stage that holds it
    kind: type = str  # bool, int, float or str
    many: bool = False  # a tuple of them
    optional: bool = False  # None is a value
    choices: tuple[str, ...] = ()

    @property
    def flag(self) -> str:
        return f"--{self.name}"

    @property
    def allowed(self) -> str:
        """What is accepted, in words."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        limits = " and ".join(f"{words} {bound}" for words, _, bound in self.limits)
        return f"{_NOUNS[self.kind]} {limits}".strip()

    @property
    def limits(self) -> list[tuple[str, Callable[[float, float], bool], float]]:
        """Those that the setting has: words, comparison, bound."""
        bounds = ((words, holds, getattr(self, name)) for name, (words, holds) in _LIMITS.items())
        return [(words, holds, bound) for words, holds, bound in bounds if bound is not None]


def setting(default: Any, help: str, unit: str = "", **details: Any) -> Any:
    """A dataclass field that describes a setting; its type is the field's annotation, `details` are `Setting`'s.

    Annotations may be bool, int, float, str, a ``Literal`` of strings (its values are the choices),
    ``tuple[int, ...]`` or ``tuple[float, ...]``, each also with ``| None``.
    """
    return field(default=default, metadata={_METADATA_KEY: Setting(default, help, unit, **details)})


def _settings_of(stage_class: type) -> dict[str, Setting]:
    """All settings of a stage by name, in the order in which they are declared.

    TypeError if two groups declare the same name, or a type is not one that :func:`setting` lists.
    """
    found: dict[str, Setting] = {}
    for group, group_class in groups_of(stage_class).items():
        hints = typing.get_type_hints(group_class)
        for item in dataclasses.fields(group_class):
            if item.name in found:
                raise TypeError(f"{stage_class.__name__}: {item.name} is in both {found[item.name].group} and {group}")
            declared, kind = item.metadata[_METADATA_KEY], _read_type(hints[item.name], item.name)
            minimum = 1 if kind["kind"] is int and declared.minimum is None else declared.minimum
            subject = declared.subject or group_class.title
            found[item.name] = replace(declared, minimum=minimum, subject=subject, name=item.name, group=group, **kind)
    return found


settings_of: Callable[[type], dict[str, Setting]] = cache(_settings_of)  # the same dictionary for every caller


def groups_of(stage_class: type) -> dict[str, Any]:
    """The group classes of a stage by attribute name."""
    hints = typing.get_type_hints(stage_class)
    return {item.name: hints[item.name] for item in dataclasses.fields(stage_class)}


def values_of(stage: Any) -> dict[str, Any]:
    """The values of all settings of a stage, by name."""
    return {name: value for group in vars(stage).values() for name, value in vars(group).items()}


def from_text(setting: Setting, text: str) -> Any:
    """A value typed on the command line, one element where the setting is a tuple; ValueError says what is allowed."""
    try:
        value = setting.kind(text)
    except ValueError:
        raise ValueError(_refusal(setting, text)) from None
    return _in_range(setting, value, text)


def from_yaml(setting: Setting, value: Any) -> Any:
    """A value read from a saved file, as the type that the setting declares; ValueError says what is allowed."""
    if value is None:
        if setting.optional or setting.none_means:
            return None
        raise ValueError(_refusal(setting, "null"))
    if not setting.many:
        return _scalar_from_yaml(setting, value)
    if not isinstance(value, list) or not (value or setting.allow_empty):
        raise ValueError(f"{value!r} is not a list, each value {setting.allowed}")
    return tuple(_scalar_from_yaml(setting, item) for item in value)


def nearest(word: str, candidates: Iterable[str]) -> str | None:
    """The candidate that ``word`` most probably stands for, if one is close."""
    return next(iter(difflib.get_close_matches(word, list(candidates), n=1)), None)


def as_text(value: Any) -> str:
    """A value as it would be typed."""
    if isinstance(value, (tuple, list)):
        return " ".join(as_text(item) for item in value) or "none"
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


def _read_type(hint: Any, name: str) -> dict[str, Any]:
    """`kind`, `many`, `optional` and `choices` of an annotation."""
    alternatives = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    inner = [item for item in alternatives if item is not type(None)]
    many = typing.get_origin(inner[0]) is tuple
    kind = typing.get_args(inner[0])[0] if many else inner[0]
    choices = typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else ()
    kind = str if choices else kind
    if len(inner) > 1 or kind not in _NOUNS:
        raise TypeError(f"{name}: {hint} is not a type of settings")
    return {"kind": kind, "many": many, "optional": len(alternatives) > len(inner), "choices": choices}


def _scalar_from_yaml(setting: Setting, value: Any) -> Any:
    if setting.kind is float and isinstance(value, str):  # YAML 1.1 reads 1e-8, without a dot, as text
        return from_text(setting, value)
    accepted = {float: numbers.Real, int: numbers.Integral}.get(setting.kind, setting.kind)  # numpy's numbers too
    if not isinstance(value, accepted) or (isinstance(value, bool) and setting.kind is not bool):
        raise ValueError(_refusal(setting, value))
    return _in_range(setting, setting.kind(value), value)


def _in_range(setting: Setting, value: Any, given: Any) -> Any:
    inside = value in setting.choices if setting.choices else all(holds(value, b) for _, holds, b in setting.limits)
    if not inside or (setting.kind is float and not math.isfinite(value)):
        raise ValueError(_refusal(setting, given))
    return value


def _refusal(setting: Setting, value: Any) -> str:
    close = nearest(str(value), setting.choices)
    hint = f" (did you mean {close}?)" if close else ""
    return f"{str(value)!r} is not {setting.allowed}{hint}"
