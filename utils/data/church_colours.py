"""Colours of the procedural church scenes: hours of the day and materials, RGB in 0..255."""

from __future__ import annotations

from dataclasses import dataclass

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


DAY = Light(
    tops=((58, 128, 214), (92, 164, 232), (40, 104, 190), (116, 182, 226)),
    bottoms=((204, 230, 248), (226, 238, 246), (180, 218, 246)),
    tint=(1.0, 1.0, 0.98),
    orb=(255, 240, 160),
    window=(52, 66, 92),
    glow=0.0,
)
DUSK = Light(
    tops=((74, 62, 132), (122, 74, 138), (58, 84, 150), (160, 86, 110)),
    bottoms=((255, 178, 104), (252, 142, 108), (255, 204, 138)),
    tint=(0.86, 0.72, 0.70),
    orb=(255, 226, 150),
    window=(255, 214, 110),
    glow=0.9,
)
NIGHT = Light(
    tops=((10, 16, 48), (18, 18, 60), (8, 28, 58)),
    bottoms=((52, 64, 124), (40, 76, 122), (80, 66, 128)),
    tint=(0.46, 0.50, 0.68),
    orb=(244, 242, 220),
    window=(255, 206, 96),
    glow=1.0,
)
OVERCAST = Light(
    tops=((128, 142, 158), (150, 160, 170)),
    bottoms=((206, 212, 216), (222, 222, 216)),
    tint=(0.86, 0.88, 0.92),
    orb=(244, 240, 222),
    window=(58, 64, 80),
    glow=0.0,
)
LIGHTS = (DAY, DAY, DAY, DUSK, DUSK, NIGHT, OVERCAST)

# Meadows, stubble, sand, snow.
GROUNDS: tuple[Colour, ...] = (
    (92, 158, 66),
    (122, 178, 74),
    (66, 128, 70),
    (186, 166, 84),
    (206, 178, 128),
    (232, 238, 246),
)
# Whitewash, cream, brick, granite, sandstone, rose and ochre plaster, blue boards, stave.
WALLS: tuple[Colour, ...] = (
    (244, 240, 230),
    (238, 220, 176),
    (186, 108, 88),
    (164, 160, 154),
    (214, 182, 128),
    (226, 176, 160),
    (232, 196, 96),
    (168, 190, 208),
    (140, 100, 76),
)
# Slate, tiles, shingle, copper, lead.
ROOFS: tuple[Colour, ...] = ((84, 90, 106), (172, 88, 66), (116, 84, 68), (88, 156, 136), (74, 98, 134))
DOORS: tuple[Colour, ...] = ((84, 52, 34), (116, 40, 36), (44, 74, 60), (48, 58, 96))
EVERGREEN: tuple[Colour, ...] = ((62, 118, 66), (84, 142, 70), (56, 100, 74))
FOLIAGE: tuple[Colour, ...] = (*EVERGREEN, (206, 144, 72), (186, 98, 70))
