"""Procedural church scenes: the embedded data set, drawn from a seed, written in LSUN's layout.

A scene is a pure function of (seed, index); the size only sets how finely it is drawn. All lengths are fractions of the
image's side, x to the right and y downwards. Colours are RGB in 0..255.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageColor, ImageDraw

from utils.data.lmdb_images import write_lmdb

Point = tuple[float, float]
Colour = tuple[float, ...]
T = TypeVar("T")

HORIZON, BASE = 0.75, 0.75 + 0.09  # the church stands on its base


@dataclass(frozen=True)
class Light:
    """The hour of a scene; its palettes are for `_palette`, `tint` multiplies the colour of everything that is lit."""

    tops: str  # sky overhead, one is drawn
    bottoms: str  # sky at the horizon, one is drawn
    tint: Colour
    orb: str  # sun or moon
    window: str  # what the panes show
    glow: float  # share of the pane's own colour against the tint


def _palette(colours: str) -> list[Colour]:
    return [ImageColor.getrgb(f"#{colour}") for colour in colours.split()]


DAY = Light("3a80d6 5ca4e8 2868be 74b6e2", "cce6f8 e2eef6 b4daf6", (1.0, 1.0, 0.98), "fff0a0", "34425c", 0.0)
DUSK = Light("4a3e84 7a4a8a 3a5496 a0566e", "ffb268 fc8e6c ffcc8a", (0.86, 0.72, 0.7), "ffe296", "ffd66e", 0.9)
NIGHT = Light("0a1030 12123c 081c3a", "34407c 284c7a 504280", (0.46, 0.5, 0.68), "f4f2dc", "ffce60", 1.0)
OVERCAST = Light("808e9e 96a0aa", "ced4d8 deded8", (0.86, 0.88, 0.92), "f4f0de", "3a4050", 0.0)
LIGHTS = (DAY, DAY, DAY, DUSK, DUSK, NIGHT, OVERCAST)

GROUNDS = _palette("5c9e42 7ab24a 428046 baa654 ceb280 e8eef6")  # meadows, stubble, sand, snow
# Whitewash, cream, brick, granite, sandstone, rose, ochre, blue boards, stave.
WALLS = _palette("f4f0e6 eedcb0 ba6c58 a4a09a d6b680 e2b0a0 e8c460 a8bed0 8c644c")
ROOFS = _palette("545a6a ac5842 745444 589c88 4a6286")  # slate, tiles, shingle, copper, lead
DOORS = _palette("543422 742824 2c4a3c 303a60")
EVERGREEN = _palette("3e7642 548e46 38644a")
FOLIAGE = [*EVERGREEN, *_palette("ce9048 ba6246")]


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """`share` of b in a."""
    return tuple(x + (y - x) * share for x, y in zip(a, b, strict=True))


class _Dice(random.Random):
    """Random choices built on `random()` alone, the one method whose sequence Python keeps between versions."""

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self.random()

    def chance(self, probability: float) -> bool:
        return self.random() < probability

    def pick(self, options: Sequence[T]) -> T:
        return options[int(len(options) * self.random())]


class _Canvas:
    """Shapes in fractions of the side, drawn `oversample` times too large and averaged down at the end."""

    def __init__(self, size: int, light: Light) -> None:
        self.light, self.oversample = light, 4 if size <= 64 else 3
        self.side = size * self.oversample
        self.image = Image.new("RGB", (self.side, self.side))
        self.draw = ImageDraw.Draw(self.image)

    def lit(self, colour: Colour, shade: float = 1.0) -> Colour:
        """The colour under this scene's light, darkened (shade < 1) or brightened."""
        return tuple(min(255.0, c * t * shade) for c, t in zip(colour, self.light.tint, strict=True))

    def polygon(self, colour: Colour, *points: Point) -> None:
        self.draw.polygon([(x * self.side, y * self.side) for x, y in points], fill=tuple(int(c + 0.5) for c in colour))

    def box(self, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
        self.polygon(colour, (left, top), (right, top), (right, bottom), (left, bottom))

    def ellipse(self, x: float, y: float, rx: float, ry: float, colour: Colour) -> None:
        s, fill = self.side, tuple(int(c + 0.5) for c in colour)
        self.draw.ellipse(((x - rx) * s, (y - ry) * s, (x + rx) * s, (y + ry) * s), fill=fill)

    def arch(self, x: float, bottom: float, width: float, height: float, colour: Colour) -> None:
        """A box with a round head, centred at x."""
        r, top = width / 2, bottom - height + width / 2
        self.ellipse(x, top, r, r, colour)
        self.box(x - r, top, x + r, bottom, colour)

    def cross(self, x: float, bottom: float, height: float, colour: Colour) -> None:
        half = height * 0.1
        self.box(x - half, bottom - height, x + half, bottom, colour)
        self.box(x - height * 0.3, bottom - height * 0.74, x + height * 0.3, bottom - height * 0.54, colour)


def draw_church(seed: int, index: int, size: int) -> Image.Image:
    """Scene `index` of the endless series `seed`: RGB, size×size pixels.

    The same (seed, index) is the same scene at every size; with one version of Pillow, the same pixels.
    """
    dice = _Dice(f"toy_churches/{seed}/{index}")
    canvas = _Canvas(size, dice.pick(LIGHTS))
    sun_left = dice.chance(0.5)
    haze = _draw_sky(canvas, dice, sun_left)
    ground = _draw_land(canvas, dice, haze)
    centre = dice.pick((0.46, 0.50, 0.54))
    _draw_trees(canvas, dice, centre)
    _Church(canvas, dice, centre, sun_left).draw(ground)
    return canvas.image.reduce(canvas.oversample)


def _draw_sky(canvas: _Canvas, dice: _Dice, sun_left: bool) -> Colour:
    """Sky, sun or moon. Returns the colour at the horizon."""
    light, orb = canvas.light, _palette(canvas.light.orb)[0]
    top, bottom = dice.pick(_palette(light.tops)), dice.pick(_palette(light.bottoms))
    down = np.clip((np.arange(canvas.side) + 0.5) / canvas.side / HORIZON, 0, 1)[:, None]
    column = np.round(np.asarray(top) * (1 - down) + np.asarray(bottom) * down).astype(np.uint8)
    canvas.image.paste(Image.fromarray(np.repeat(column[:, None], canvas.side, axis=1)))
    if dice.chance(0.75):
        x = dice.between(0.08, 0.28) if sun_left else dice.between(0.72, 0.92)
        y = dice.between(0.10, 0.50 if light is DUSK else 0.28)
        r = dice.between(0.055, 0.085)
        if light is NIGHT and dice.chance(0.5):
            r *= 1.15
            edge = [(math.sin(math.pi * k / 12), y - r * math.cos(math.pi * k / 12)) for k in range(13)]
            inner = [(x - 0.2 * r * sine, y) for sine, y in reversed(edge)]
            canvas.polygon(orb, *[(x - r * sine, y) for sine, y in edge], *inner)
        else:
            canvas.ellipse(x, y, 1.5 * r, 1.5 * r, mix(mix(top, bottom, y / HORIZON), orb, 0.22))
            canvas.ellipse(x, y, r, r, orb)
    return bottom


def _draw_land(canvas: _Canvas, dice: _Dice, haze: Colour) -> Colour:
    """A hill and the ground. Returns the ground's colour, lit."""
    ground = canvas.lit(dice.pick(GROUNDS), dice.between(0.92, 1.06))
    if dice.chance(0.5):
        colour = mix(mix(ground, canvas.lit((70, 100, 120)), 0.5), haze, 0.5)
        canvas.ellipse(dice.pick((0.1, 0.9)), HORIZON + 0.02, 0.5, 0.14, colour)
    canvas.box(0, HORIZON, 1, 1, ground)
    return ground


def _draw_trees(canvas: _Canvas, dice: _Dice, centre: float) -> None:
    kind = dice.pick(("round", "fir", "poplar"))
    leaves = canvas.lit(dice.pick(EVERGREEN if kind == "fir" else FOLIAGE), dice.between(0.9, 1.1))
    trunk = canvas.lit((92, 66, 46))
    for side in (-1, 1):
        for _ in range(dice.pick((0, 1, 2))):
            x, foot = centre + side * dice.between(0.40, 0.50), dice.between(HORIZON + 0.02, BASE + 0.01)
            h = dice.between(0.20, 0.36)
            canvas.box(x - 0.014, foot - 0.4 * h, x + 0.014, foot, trunk)
            if kind == "fir":
                low, reach = foot - 0.15 * h, 0.28 * h
                canvas.polygon(leaves, (x, foot - 1.15 * h), (x + reach, low), (x - reach, low))
            else:
                rx, ry = (0.32, 0.36) if kind == "round" else (0.17, 0.58)
                canvas.ellipse(x, foot - 0.66 * h, rx * h, ry * h, leaves)


class _Church:
    """One church: a nave seen from the front or from the side, with or without a tower."""

    def __init__(self, canvas: _Canvas, dice: _Dice, centre: float, sun_left: bool) -> None:
        self.canvas, self.dice, self.sun_left = canvas, dice, sun_left
        wall, brightness = dice.pick(WALLS), dice.between(0.94, 1.04)
        self.wall, self.shaded = canvas.lit(wall, brightness), canvas.lit(wall, 0.84 * brightness)
        self.roof = canvas.lit(dice.pick(ROOFS), dice.between(0.92, 1.08))
        self.trim = canvas.lit((206, 176, 74) if dice.chance(0.5) else (60, 56, 58))
        self.door = mix(canvas.lit(dice.pick(DOORS)), self.wall, 0.25)
        window = _palette(canvas.light.window)[0]
        self.pane = mix(mix(canvas.lit(window), window, canvas.light.glow), self.wall, 0.28)
        self.from_front, self.tower_side = dice.chance(0.5), dice.pick((-1, -1, 1, 1, 0))
        self.tower_width = dice.between(0.21, 0.25)
        self.nave_width = dice.between(0.46, 0.54) if self.from_front else dice.between(0.52, 0.62)
        self.wall_height = dice.between(0.25, 0.30) if self.from_front else dice.between(0.23, 0.28)
        # The nave and the tower together stand in the middle.
        self.nave_x = centre - self.tower_side * self.tower_width * 0.42
        self.left, self.right = self.nave_x - self.nave_width / 2, self.nave_x + self.nave_width / 2
        self.eaves = BASE - self.wall_height
        self.tower_x = self.nave_x + self.tower_side * (self.nave_width / 2 + self.tower_width * 0.36)
        self.door_x = self.tower_x if self.tower_side and not self.from_front else self.nave_x

    def draw(self, ground: Colour) -> None:
        """The church, and a path from its door to the lower edge."""
        x = self.door_x
        if self.dice.chance(0.6):
            end = x + self.dice.between(-0.15, 0.15)
            colour = mix(ground, self.canvas.lit((232, 214, 178)), 0.45)
            self.canvas.polygon(colour, (x - 0.05, BASE), (x + 0.05, BASE), (end + 0.13, 1.0), (end - 0.13, 1.0))
        if self.from_front:
            self._draw_front()
        else:
            self._draw_flank()
        if self.tower_side:
            self._draw_tower()
        self.canvas.arch(x, BASE, 0.11, self.dice.between(0.16, 0.19), self.door)

    def _draw_front(self) -> None:
        c, dice, left, right, eaves, x = self.canvas, self.dice, self.left, self.right, self.eaves, self.nave_x
        ridge, gutter = eaves - self.nave_width * dice.between(0.45, 0.60), eaves + 0.02
        c.polygon(self.roof, (left - 0.035, gutter), (x, ridge - 0.045), (right + 0.035, gutter))
        c.polygon(self.wall, (left, eaves), (x, ridge), (right, eaves))
        c.box(left, eaves, right, BASE, self.wall)
        c.cross(x, ridge - 0.03, 0.13, self.trim)
        if dice.chance(0.6):
            c.ellipse(x, eaves - 0.03, 0.075, 0.075, self.pane)
        else:
            c.arch(x, eaves + 0.03, 0.09, 0.16, self.pane)
        if dice.chance(0.8):
            for side in (-1, 1):
                c.arch(x + side * self.nave_width * 0.32, BASE - 0.06, 0.075, 0.15, self.pane)

    def _draw_flank(self) -> None:
        c, dice, left, right, eaves = self.canvas, self.dice, self.left, self.right, self.eaves
        ridge, gutter, slope = eaves - dice.between(0.17, 0.22), eaves + 0.015, dice.between(0.02, 0.09)
        c.box(left, eaves, right, BASE, self.wall)
        c.polygon(
            self.roof, (left - 0.02, gutter), (left + slope, ridge), (right - slope, ridge), (right + 0.02, gutter)
        )
        if self.tower_side == 0:
            x = self.nave_x + dice.pick((-0.3, 0.0, 0.3)) * (self.nave_width - 0.1)
            c.box(x - 0.04, ridge - 0.09, x + 0.04, ridge + 0.02, self.wall)
            c.polygon(self.roof, (x - 0.055, ridge - 0.085), (x, ridge - 0.20), (x + 0.055, ridge - 0.085))
            c.cross(x, ridge - 0.19, 0.09, self.trim)
        number = dice.pick((2, 3, 4))
        width, height = min(0.08, 0.5 * self.nave_width / number), self.wall_height * dice.between(0.55, 0.68)
        for k in range(number):
            x = left + self.nave_width * (k + 0.5) / number
            if self.tower_side or abs(x - self.door_x) > 0.08:
                c.arch(x, BASE - self.wall_height * 0.18, width, height, self.pane)

    def _draw_tower(self) -> None:
        c, dice, x, half = self.canvas, self.dice, self.tower_x, self.tower_width / 2
        top = BASE - dice.between(0.46, 0.52)
        spire = dice.pick(("pyramid", "needle", "dome", "flat"))
        if spire == "flat":
            tip, tooth = top - 0.045, half * 0.44
            for k in (-1, 0, 1):
                mid = x + k * (half - tooth / 2)
                c.box(mid - tooth / 2, tip, mid + tooth / 2, top + 0.005, self.wall)
        elif spire == "dome":
            r = half * 1.1
            tip = top - 1.9 * r
            c.ellipse(x, top - 0.55 * r, r, 0.95 * r, self.roof)
            c.box(x - 0.022, tip, x + 0.022, top - 1.3 * r, self.roof)
        else:
            low, high, reach = (0.13, 0.18, 1.22 * half) if spire == "pyramid" else (0.22, 0.28, 1.05 * half)
            tip = top - min(dice.between(low, high), top - 0.10)
            c.polygon(self.roof, (x - reach, top + 0.005), (x, tip), (x + reach, top + 0.005))
        c.box(x - half, top, x + half, BASE, self.wall)
        dark_left, dark_right = (x + 0.3 * half, x + half) if self.sun_left else (x - half, x - 0.3 * half)
        c.box(dark_left, top, dark_right, BASE, self.shaded)
        if spire != "flat" or dice.chance(0.3):
            c.cross(x, tip + 0.015, 0.10, self.trim)
        if dice.pick(("arch", "arch", "clock")) == "arch":
            c.arch(x, top + 0.18, 0.085, 0.14, self.pane)
        else:
            c.ellipse(x, top + 0.10, 0.065, 0.065, c.lit((248, 244, 226)))
            c.ellipse(x, top + 0.10, 0.025, 0.025, c.lit((70, 60, 60)))


def write_toy_churches(folder: str | Path, *, size: int, train_images: int, val_images: int, seed: int) -> None:
    """Writes scenes in LSUN's layout: `<folder>/toy_churches_train_lmdb` and `<folder>/toy_churches_val_lmdb`.

    Values are lossless WebP, keys 40 hexadecimal digits. Scenes 0, 1, … train, the ones after them validate. What is
    there already is left alone; each LMDB appears whole or not at all.
    """

    def encoded(scenes: range) -> Iterator[tuple[bytes, bytes]]:
        for index in scenes:
            key = hashlib.sha1(f"toy_churches/{seed}/{index}".encode(), usedforsecurity=False).hexdigest().encode()
            buffer = BytesIO()
            draw_church(seed, index, size).save(buffer, "WEBP", lossless=True, method=0)
            yield key, buffer.getvalue()

    for split, scenes in (("train", range(train_images)), ("val", range(train_images, train_images + val_images))):
        write_lmdb(Path(folder) / f"toy_churches_{split}_lmdb", encoded(scenes))
