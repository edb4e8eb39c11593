"""Colours that can be told apart, with words on them that can be read."""

from __future__ import annotations

from itertools import combinations

import pytest

from parallel_topology.render.palette import FEW, contrast, ink, stage_colors, terminal_colors

# What the colour-blind see of linear sRGB, after Viénot, Brettel and Mollon 1999:
# https://daltonlens.org/understanding-cvd-simulation/
SEEN = {
    "everyone": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protanopes": ((0.11238, 0.88762, 0), (0.11238, 0.88762, 0), (0.00401, -0.00401, 1)),
    "deuteranopes": ((0.29275, 0.70725, 0), (0.29275, 0.70725, 0), (-0.02234, 0.02234, 1)),
}


def channels(color: str) -> list[float]:
    values = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    return [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in values]


def distance(one: str, other: str, matrix: tuple[tuple[float, ...], ...]) -> float:
    """How far apart two colours are to someone's eyes, in CIE L*a*b*."""

    def lab(color: str) -> list[float]:
        rgb = [sum(weight * part for weight, part in zip(row, channels(color), strict=True)) for row in matrix]
        to_xyz = ((0.4339, 0.3762, 0.1899), (0.2126, 0.7152, 0.0722), (0.0178, 0.1098, 0.8730))  # D65 white is 1
        xyz = [sum(weight * part for weight, part in zip(row, rgb, strict=True)) for row in to_xyz]
        x, y, z = (max(part, 0) ** (1 / 3) if part > 0.008856 else 7.787 * part + 16 / 116 for part in xyz)
        return [116 * y - 16, 500 * (x - y), 200 * (y - z)]

    return sum((a - b) ** 2 for a, b in zip(lab(one), lab(other), strict=True)) ** 0.5


def from_cube(number: int) -> str:
    """What a terminal shows for one of the colours 16 .. 231."""
    red, rest = divmod(number - 16, 36)
    return "#" + "".join(f"{(0, 95, 135, 175, 215, 255)[level]:02x}" for level in (red, *divmod(rest, 6)))


@pytest.mark.parametrize("eyes", SEEN)
def test_few_stages_can_be_told_apart(eyes: str):
    assert min(distance(*pair, SEEN[eyes]) for pair in combinations(FEW, 2)) > 15


def test_red_and_green_would_not_do():
    """So that the test above can fail."""
    assert distance("#c04000", "#808000", SEEN["deuteranopes"]) < 7


@pytest.mark.parametrize("count", [1, 8, 9, 32, 100])
def test_every_colour_has_an_ink_that_can_be_read(count: int):
    colors = stage_colors(count)
    assert len(set(colors)) == len(colors) == count
    assert all(contrast(color, ink(color)) >= 4.5 for color in colors)
    assert all(contrast(*map(from_cube, terminal_colors(color))) >= 4.5 for color in colors)


def test_many_stages_go_from_dark_to_light():
    light = [contrast(color, "#000000") for color in stage_colors(64)]
    assert light == sorted(light)


def test_contrast_is_as_defined():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.478, abs=0.001)


@pytest.mark.parametrize(("color", "number"), [("#000000", 16), ("#ffffff", 231), ("#ff0000", 196), ("#5f87af", 67)])
def test_terminal_colours(color: str, number: int):
    assert terminal_colors(color)[0] == number
