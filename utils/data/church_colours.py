"""Colours of the procedural church scenes: hours of the day and materials, RGB in 0..255."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import ImageColor

Colour = tuple[float, float, float]


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """`share` of b in a."""
    return (a[0] + (b[0] - a[0]) * share, a[1] + (b[1] - a[1]) * share, a[2] + (b[2] - a[2]) * share)


def rgb(colour: Colour) -> tuple[int, int, int]:
    """The colour as Pillow wants it, rounded."""
    red, green, blue = colour
    return int(red + 0.5), int(green + 0.5), int(blue + 0.5)


@dataclass(frozen=True)
class Light:
    """The hour of a scene. Colours are in 0..255; `tint` multiplies the colour of everything that is lit."""

    tops: tuple[Colour, ...]  # sky overhead, one is drawn
    bottoms: tuple[Colour, ...]  # sky at the horizon, one is drawn
    tint: Colour
    orb: Colour  # sun or moon
    window: Colour  # what the panes show
    glow: float  # share of the pane's own colour against the tint


def _palette(colours: str) -> tuple[Colour, ...]:
    """Colours as a web page writes them."""
    return tuple(ImageColor.getrgb(f"#{colour}")[:3] for colour in colours.split())


def _light(tops: str, bottoms: str, tint: Colour, orb: str, window: str, glow: float) -> Light:
    return Light(_palette(tops), _palette(bottoms), tint, _palette(orb)[0], _palette(window)[0], glow)


DAY = _light("3a80d6 5ca4e8 2868be 74b6e2", "cce6f8 e2eef6 b4daf6", (1.0, 1.0, 0.98), "fff0a0", "34425c", 0.0)
DUSK = _light("4a3e84 7a4a8a 3a5496 a0566e", "ffb268 fc8e6c ffcc8a", (0.86, 0.72, 0.7), "ffe296", "ffd66e", 0.9)
NIGHT = _light("0a1030 12123c 081c3a", "34407c 284c7a 504280", (0.46, 0.5, 0.68), "f4f2dc", "ffce60", 1.0)
OVERCAST = _light("808e9e 96a0aa", "ced4d8 deded8", (0.86, 0.88, 0.92), "f4f0de", "3a4050", 0.0)
LIGHTS = (DAY, DAY, DAY, DUSK, DUSK, NIGHT, OVERCAST)

# Meadows, stubble, sand, snow.
GROUNDS = _palette("5c9e42 7ab24a 428046 baa654 ceb280 e8eef6")
# Whitewash, cream, brick, granite, sandstone, rose, ochre, blue boards, stave.
WALLS = _palette("f4f0e6 eedcb0 ba6c58 a4a09a d6b680 e2b0a0 e8c460 a8bed0 8c644c")
# Slate, tiles, shingle, copper, lead.
ROOFS = _palette("545a6a ac5842 745444 589c88 4a6286")
DOORS = _palette("543422 742824 2c4a3c 303a60")
EVERGREEN = _palette("3e7642 548e46 38644a")
FOLIAGE = (*EVERGREEN, *_palette("ce9048 ba6246"))
