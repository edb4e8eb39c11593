"""Colours of the stages: told apart by colour-blind people, with an ink that can be read on each."""

from __future__ import annotations

FEW = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7", "#555555")
"""For up to eight stages: M. Okabe and K. Ito, https://jfly.uni-koeln.de/color/, with dark grey for their black."""

RAMP = ("#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#fde725")
"""For more, where only the order can be seen: matplotlib's viridis, https://bids.github.io/colormap/."""


def stage_colors(count: int) -> list[str]:
    """A colour, `#rrggbb`, for each of `count` stages."""
    if count <= len(FEW):
        return list(FEW[:count])
    return [_on_ramp(stage / (count - 1)) for stage in range(count)]


def ink(color: str) -> str:
    """Black or white, whichever can be read better on `color`: a contrast of 4.5 and more on any."""
    return "#000000" if contrast(color, "#000000") >= contrast(color, "#ffffff") else "#ffffff"


def contrast(one: str, other: str) -> float:
    """The contrast ratio, 1 to 21: https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio."""
    dark, light = sorted((_luminance(one), _luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def terminal_colors(color: str) -> tuple[int, int]:
    """The nearest of a terminal's 256 colours, in its 6 x 6 x 6 cube, and the ink for it."""
    levels = [min(range(6), key=lambda level: abs(value - _LEVELS[level])) for value in _channels(color)]
    shown = "#" + "".join(f"{_LEVELS[level]:02x}" for level in levels)
    return 16 + 36 * levels[0] + 6 * levels[1] + levels[2], _BLACK if ink(shown) == "#000000" else _WHITE


_LEVELS = (0, 95, 135, 175, 215, 255)
_BLACK, _WHITE = 16, 231


def _channels(color: str) -> tuple[int, int, int]:
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)


def _luminance(color: str) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in _channels(color))]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _on_ramp(place: float) -> str:
    at = place * (len(RAMP) - 1)
    index = min(int(at), len(RAMP) - 2)
    pairs = zip(_channels(RAMP[index]), _channels(RAMP[index + 1]), strict=True)
    return "#" + "".join(f"{round(low + (high - low) * (at - index)):02x}" for low, high in pairs)
