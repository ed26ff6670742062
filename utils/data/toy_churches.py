"""Procedural church scenes: the embedded data set, drawn from a seed, written in LSUN's layout.

A scene is a pure function of (seed, index); the size only sets how finely it is drawn. All lengths are fractions of the
image's side, x to the right and y downwards.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageDraw

from utils.data import church_colours as colours
from utils.data.church_colours import Colour, Light, mix, rgb
from utils.data.lmdb_images import write_lmdb

Point = tuple[float, float]
T = TypeVar("T")


class _Dice:
    """Random choices built on `random()` alone, the one method whose sequence Python keeps between versions."""

    def __init__(self, seed: int, index: int) -> None:
        self._random = random.Random(f"toy_churches/{seed}/{index}").random

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self._random()

    def chance(self, probability: float) -> bool:
        return self._random() < probability

    def integer(self, low: int, high: int) -> int:
        """From low to high, both included."""
        return low + int((high - low + 1) * self._random())

    def pick(self, options: Sequence[T]) -> T:
        return options[int(len(options) * self._random())]


class _Canvas:
    """Shapes in fractions of the side, drawn `oversample` times too large and averaged down."""

    def __init__(self, size: int, light: Light) -> None:
        self.size = size
        self.oversample = 4 if size <= 64 else 3
        self.side = size * self.oversample
        self.light = light
        self.image = Image.new("RGB", (self.side, self.side))
        self.draw = ImageDraw.Draw(self.image)

    def lit(self, colour: Colour, shade: float = 1.0) -> Colour:
        """The colour under this scene's light, darkened (shade < 1) or brightened."""
        return tuple(min(255.0, c * t * shade) for c, t in zip(colour, self.light.tint, strict=True))  # type: ignore[return-value]

    def polygon(self, points: Sequence[Point], colour: Colour) -> None:
        self.draw.polygon([(x * self.side, y * self.side) for x, y in points], fill=rgb(colour))

    def box(self, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
        self.polygon(((left, top), (right, top), (right, bottom), (left, bottom)), colour)

    def ellipse(self, x: float, y: float, rx: float, ry: float, colour: Colour) -> None:
        s = self.side
        self.draw.ellipse(((x - rx) * s, (y - ry) * s, (x + rx) * s, (y + ry) * s), fill=rgb(colour))

    def arch(self, x: float, bottom: float, width: float, height: float, colour: Colour) -> None:
        """A box with a round head, centred at x."""
        r = width / 2
        top = bottom - height + r
        self.ellipse(x, top, r, r, colour)
        self.box(x - r, top, x + r, bottom, colour)

    def cross(self, x: float, bottom: float, height: float, colour: Colour) -> None:
        half = height * 0.1
        self.box(x - half, bottom - height, x + half, bottom, colour)
        self.box(x - height * 0.3, bottom - height * 0.74, x + height * 0.3, bottom - height * 0.54, colour)

    def gradient(self, top: Colour, bottom: Colour, down_to: float) -> None:
        """Fills the canvas from `top` to `bottom`, which is reached at y = down_to."""
        rows = np.clip((np.arange(self.side) + 0.5) / self.side / down_to, 0, 1)[:, None]
        column = np.asarray(top) * (1 - rows) + np.asarray(bottom) * rows
        strip = Image.fromarray(np.round(column).astype(np.uint8)[:, None, :])
        self.image.paste(strip.resize((self.side, self.side), Image.Resampling.NEAREST))

    def finish(self) -> Image.Image:
        return self.image.reduce(self.oversample)


def draw_church(seed: int, index: int, size: int) -> Image.Image:
    """Scene `index` of the endless series `seed`: RGB, size×size pixels.

    The same (seed, index) is the same scene at every size; with one version of Pillow, the same pixels.
    """
    dice = _Dice(seed, index)
    canvas = _Canvas(size, dice.pick(colours.LIGHTS))
    horizon = 0.75
    sun_left = dice.chance(0.5)
    haze = _draw_sky(canvas, dice, horizon, sun_left)
    ground = _draw_land(canvas, dice, horizon, haze)
    base = horizon + 0.09
    centre = dice.pick((0.46, 0.50, 0.54))
    _draw_trees(canvas, dice, horizon, base, centre)
    church = _Church(canvas, dice, base, centre, sun_left)
    church.draw_path(ground)
    church.draw()
    return canvas.finish()


def _draw_sky(canvas: _Canvas, dice: _Dice, horizon: float, sun_left: bool) -> Colour:
    """Sky, sun or moon. Returns the colour at the horizon."""
    light = canvas.light
    top, bottom = dice.pick(light.tops), dice.pick(light.bottoms)
    canvas.gradient(top, bottom, horizon)
    if dice.chance(0.75):
        x = dice.between(0.08, 0.28) if sun_left else dice.between(0.72, 0.92)
        y = dice.between(0.10, 0.50 if light is colours.DUSK else 0.28)
        r = dice.between(0.055, 0.085)
        if light is colours.NIGHT and dice.chance(0.5):
            r *= 1.15
            edge = [(math.sin(math.pi * k / 12), y - r * math.cos(math.pi * k / 12)) for k in range(13)]
            inner = [(x - 0.2 * r * sine, y) for sine, y in reversed(edge)]
            canvas.polygon([(x - r * sine, y) for sine, y in edge] + inner, light.orb)
        else:
            canvas.ellipse(x, y, 1.5 * r, 1.5 * r, mix(mix(top, bottom, y / horizon), light.orb, 0.22))
            canvas.ellipse(x, y, r, r, light.orb)
    return bottom


def _draw_land(canvas: _Canvas, dice: _Dice, horizon: float, haze: Colour) -> Colour:
    """A hill and the ground. Returns the ground's colour, lit."""
    ground = canvas.lit(dice.pick(colours.GROUNDS), dice.between(0.92, 1.06))
    if dice.chance(0.5):
        colour = mix(mix(ground, canvas.lit((70, 100, 120)), 0.5), haze, 0.5)
        canvas.ellipse(dice.pick((0.1, 0.9)), horizon + 0.02, 0.5, 0.14, colour)
    canvas.box(0, horizon, 1, 1, ground)
    return ground


def _draw_trees(canvas: _Canvas, dice: _Dice, horizon: float, base: float, centre: float) -> None:
    kind = dice.pick(("round", "fir", "poplar"))
    leaves = canvas.lit(dice.pick(colours.EVERGREEN if kind == "fir" else colours.FOLIAGE), dice.between(0.9, 1.1))
    trunk = canvas.lit((92, 66, 46))
    for side in (-1, 1):
        for _ in range(dice.integer(0, 2)):
            x = centre + side * dice.between(0.40, 0.50)
            foot = dice.between(horizon + 0.02, base + 0.01)
            h = dice.between(0.20, 0.36)
            canvas.box(x - 0.014, foot - 0.4 * h, x + 0.014, foot, trunk)
            if kind == "round":
                canvas.ellipse(x, foot - 0.66 * h, 0.32 * h, 0.36 * h, leaves)
            elif kind == "fir":
                low, reach = foot - 0.15 * h, 0.28 * h
                canvas.polygon(((x, foot - 1.15 * h), (x + reach, low), (x - reach, low)), leaves)
            else:
                canvas.ellipse(x, foot - 0.66 * h, 0.17 * h, 0.58 * h, leaves)


class _Church:
    """One church: a nave seen from the front or from the side, with or without a tower."""

    def __init__(self, canvas: _Canvas, dice: _Dice, base: float, centre: float, sun_left: bool) -> None:
        self.canvas, self.dice, self.base, self.sun_left = canvas, dice, base, sun_left
        wall = dice.pick(colours.WALLS)
        brightness = dice.between(0.94, 1.04)
        self.wall = canvas.lit(wall, brightness)
        self.shaded = canvas.lit(wall, 0.84 * brightness)
        self.roof = canvas.lit(dice.pick(colours.ROOFS), dice.between(0.92, 1.08))
        self.trim = canvas.lit((206, 176, 74)) if dice.chance(0.5) else canvas.lit((60, 56, 58))
        self.door = mix(canvas.lit(dice.pick(colours.DOORS)), self.wall, 0.25)
        pane = mix(canvas.lit(canvas.light.window), canvas.light.window, canvas.light.glow)
        self.pane = mix(pane, self.wall, 0.28)
        self.from_front = dice.chance(0.5)
        self.tower_side = dice.pick((-1, -1, 1, 1, 0))
        self.tower_width = dice.between(0.21, 0.25)
        self.nave_width = dice.between(0.46, 0.54) if self.from_front else dice.between(0.52, 0.62)
        self.wall_height = dice.between(0.25, 0.30) if self.from_front else dice.between(0.23, 0.28)
        # The nave and the tower together stand in the middle.
        self.nave_x = centre - self.tower_side * self.tower_width * 0.42
        self.left, self.right = self.nave_x - self.nave_width / 2, self.nave_x + self.nave_width / 2
        self.eaves = base - self.wall_height
        self.tower_x = self.nave_x + self.tower_side * (self.nave_width / 2 + self.tower_width * 0.36)
        self.door_x = self.tower_x if self.tower_side and not self.from_front else self.nave_x

    def draw(self) -> None:
        if self.from_front:
            self._draw_front()
        else:
            self._draw_flank()
        if self.tower_side:
            self._draw_tower()
        self.canvas.arch(self.door_x, self.base, 0.11, self.dice.between(0.16, 0.19), self.door)

    def draw_path(self, ground: Colour) -> None:
        """A path from the door to the lower edge, under everything else."""
        if self.dice.chance(0.6):
            end = self.door_x + self.dice.between(-0.15, 0.15)
            colour = mix(ground, self.canvas.lit((232, 214, 178)), 0.45)
            x, base = self.door_x, self.base
            self.canvas.polygon(((x - 0.05, base), (x + 0.05, base), (end + 0.13, 1.0), (end - 0.13, 1.0)), colour)

    def _draw_front(self) -> None:
        c, dice, left, right, eaves = self.canvas, self.dice, self.left, self.right, self.eaves
        ridge = eaves - self.nave_width * dice.between(0.45, 0.60)
        gutter = eaves + 0.02
        c.polygon(((left - 0.035, gutter), (self.nave_x, ridge - 0.045), (right + 0.035, gutter)), self.roof)
        c.polygon(((left, eaves), (self.nave_x, ridge), (right, eaves)), self.wall)
        c.box(left, eaves, right, self.base, self.wall)
        c.cross(self.nave_x, ridge - 0.03, 0.13, self.trim)
        if dice.chance(0.6):
            c.ellipse(self.nave_x, eaves - 0.03, 0.075, 0.075, self.pane)
        else:
            c.arch(self.nave_x, eaves + 0.03, 0.09, 0.16, self.pane)
        if dice.chance(0.8):
            for side in (-1, 1):
                c.arch(self.nave_x + side * self.nave_width * 0.32, self.base - 0.06, 0.075, 0.15, self.pane)

    def _draw_flank(self) -> None:
        c, dice, left, right, eaves = self.canvas, self.dice, self.left, self.right, self.eaves
        ridge = eaves - dice.between(0.17, 0.22)
        slope = dice.between(0.02, 0.09)
        c.box(left, eaves, right, self.base, self.wall)
        gutter = eaves + 0.015
        roof = ((left - 0.02, gutter), (left + slope, ridge), (right - slope, ridge), (right + 0.02, gutter))
        c.polygon(roof, self.roof)
        if self.tower_side == 0:
            x = self.nave_x + dice.pick((-0.3, 0.0, 0.3)) * (self.nave_width - 0.1)
            c.box(x - 0.04, ridge - 0.09, x + 0.04, ridge + 0.02, self.wall)
            c.polygon(((x - 0.055, ridge - 0.085), (x, ridge - 0.20), (x + 0.055, ridge - 0.085)), self.roof)
            c.cross(x, ridge - 0.19, 0.09, self.trim)
        number = dice.integer(2, 4)
        width = min(0.08, 0.5 * self.nave_width / number)
        height = self.wall_height * dice.between(0.55, 0.68)
        for k in range(number):
            x = left + self.nave_width * (k + 0.5) / number
            if self.tower_side or abs(x - self.door_x) > 0.08:
                c.arch(x, self.base - self.wall_height * 0.18, width, height, self.pane)

    def _draw_tower(self) -> None:
        c, dice = self.canvas, self.dice
        x, half = self.tower_x, self.tower_width / 2
        top = self.base - dice.between(0.46, 0.52)
        spire = dice.pick(("pyramid", "needle", "dome", "flat"))
        tip = self._draw_spire(spire, x, top, half)
        c.box(x - half, top, x + half, self.base, self.wall)
        dark_left, dark_right = (x + 0.3 * half, x + half) if self.sun_left else (x - half, x - 0.3 * half)
        c.box(dark_left, top, dark_right, self.base, self.shaded)
        if spire != "flat" or dice.chance(0.3):
            c.cross(x, tip + 0.015, 0.10, self.trim)
        upper = dice.pick(("arch", "arch", "clock"))
        if upper == "arch":
            c.arch(x, top + 0.18, 0.085, 0.14, self.pane)
        else:
            c.ellipse(x, top + 0.10, 0.065, 0.065, c.lit((248, 244, 226)))
            c.ellipse(x, top + 0.10, 0.025, 0.025, c.lit((70, 60, 60)))

    def _draw_spire(self, spire: str, x: float, top: float, half: float) -> float:
        """Draws the tower's head; returns the y of its tip."""
        c, dice = self.canvas, self.dice
        if spire == "flat":
            tooth = half * 0.44
            for k in (-1, 0, 1):
                mid = x + k * (half - tooth / 2)
                c.box(mid - tooth / 2, top - 0.045, mid + tooth / 2, top + 0.005, self.wall)
            return top - 0.045
        if spire == "dome":
            r = half * 1.1
            c.ellipse(x, top - 0.55 * r, r, 0.95 * r, self.roof)
            c.box(x - 0.022, top - 1.9 * r, x + 0.022, top - 1.3 * r, self.roof)
            return top - 1.9 * r
        height = dice.between(0.13, 0.18) if spire == "pyramid" else dice.between(0.22, 0.28)
        reach = half * (1.22 if spire == "pyramid" else 1.05)
        height = min(height, top - 0.10)
        c.polygon(((x - reach, top + 0.005), (x, top - height), (x + reach, top + 0.005)), self.roof)
        return top - height


def write_toy_churches(folder: str | Path, *, size: int, train_images: int, val_images: int, seed: int) -> None:
    """Writes scenes in LSUN's layout: `<folder>/toy_churches_train_lmdb` and `<folder>/toy_churches_val_lmdb`.

    Values are lossless WebP, keys 40 hexadecimal digits. Scenes 0, 1, … train, the ones after them validate. What is
    there already is left alone; each LMDB appears whole or not at all.
    """
    for split, scenes in (("train", range(train_images)), ("val", range(train_images, train_images + val_images))):
        write_lmdb(Path(folder) / f"toy_churches_{split}_lmdb", _encoded(scenes, seed, size))


def _encoded(indices: range, seed: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    for index in indices:
        key = hashlib.sha1(f"toy_churches/{seed}/{index}".encode(), usedforsecurity=False).hexdigest().encode()
        buffer = BytesIO()
        draw_church(seed, index, size).save(buffer, "WEBP", lossless=True, method=0)
        yield key, buffer.getvalue()
