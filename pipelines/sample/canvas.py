"""A small drawing surface: Pillow at twice the size (scaled down at the end, so that edges are smooth), gradients and texture.

Places are fractions of the width and the height; radii and thicknesses are fractions of the shorter side.
"""

from __future__ import annotations

import colorsys
import random
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

Color = tuple[int, int, int]
Point = tuple[float, float]

SCALE = 2


def mix(a: Color, b: Color, share: float) -> Color:
    """``share`` of the way from ``a`` to ``b``."""
    return (_mixed(a[0], b[0], share), _mixed(a[1], b[1], share), _mixed(a[2], b[2], share))


def _mixed(a: int, b: int, share: float) -> int:
    return round(a + (b - a) * share)


def shade(color: Color, factor: float) -> Color:
    """Darker below 1, lighter (towards white) above."""
    return mix((0, 0, 0), color, factor) if factor <= 1 else mix(color, (255, 255, 255), factor - 1)


def vary(color: Color, rng: random.Random, hue: float = 0.02, light: float = 0.08) -> Color:
    """A color near another one."""
    h, l_, s = colorsys.rgb_to_hls(*(c / 255 for c in color))
    l_ = min(0.97, max(0.03, l_ + rng.uniform(-light, light)))
    r, g, b = colorsys.hls_to_rgb((h + rng.uniform(-hue, hue)) % 1, l_, s)
    return round(255 * r), round(255 * g), round(255 * b)


class Canvas:
    """An RGB picture in the making.

    Args:
        width, height: of the finished picture, pixels.
        rng: all chance comes from here.
        tint, light: everything drawn is tinted with this color by ``1 - light``: one palette serves day and night.
    """

    def __init__(self, width: int, height: int, rng: random.Random, tint: Color = (0, 0, 0), light: float = 1.0) -> None:
        self.size = (width, height)
        self.rng = rng
        self.tint, self.light = tint, light
        self._w, self._h = width * SCALE, height * SCALE
        self._unit = min(self._w, self._h)
        self.image = Image.new("RGB", (self._w, self._h))
        self._draw = ImageDraw.Draw(self.image)
        self.noise = np.random.default_rng(rng.getrandbits(32))

    @property
    def aspect(self) -> float:
        """Width over height."""
        return self._w / self._h

    def dx(self, radius: float) -> float:
        """A length in fractions of the shorter side as a fraction of the width."""
        return radius * self._unit / self._w

    def dy(self, radius: float) -> float:
        """A length in fractions of the shorter side as a fraction of the height."""
        return radius * self._unit / self._h

    def _lit(self, color: Color, bright: bool) -> Color:
        return color if bright else mix(self.tint, color, self.light)

    def gradient(
        self, stops: Sequence[tuple[float, Color]], top: float = 0.0, bottom: float = 1.0, bright: bool = True
    ) -> None:
        """Fill the rows from ``top`` to ``bottom`` with colors between stops (place from 0 to 1, color)."""
        y0, y1 = round(top * self._h), round(bottom * self._h)
        places = np.linspace(0, 1, max(1, y1 - y0))
        colors = np.array([self._lit(color, bright) for _, color in stops], dtype=float)
        at = [place for place, _ in stops]
        rows = np.stack([np.interp(places, at, colors[:, channel]) for channel in range(3)], axis=1)
        block = np.broadcast_to(np.rint(rows).astype(np.uint8)[:, None, :], (len(rows), self._w, 3))
        self.image.paste(Image.fromarray(np.ascontiguousarray(block)), (0, y0))

    def glow(self, x: float, y: float, radius: float, color: Color, strength: float) -> None:
        """Add light around a place, falling off smoothly."""
        across = np.exp(-(((np.arange(self._w) - x * self._w) / (radius * self._unit)) ** 2))
        down = np.exp(-(((np.arange(self._h) - y * self._h) / (radius * self._unit)) ** 2))
        mask = np.rint(255 * strength * np.outer(down, across)).astype(np.uint8)
        self.image.paste(color, (0, 0), Image.fromarray(mask))

    def texture(self, top: float, bottom: float, strength: float, cells: int = 24, stretch: float = 1.0) -> None:
        """Multiply the rows from ``top`` to ``bottom`` with smooth noise; ``stretch`` > 1 makes it run along the rows."""
        y0, y1 = round(top * self._h), round(bottom * self._h)
        if y1 <= y0:
            return
        rows = max(2, round(cells * stretch * (y1 - y0) / self._unit))
        columns = max(2, round(cells / stretch * self._w / self._unit))
        grid = Image.fromarray(self.noise.standard_normal((rows, columns)).astype(np.float32))
        field = np.asarray(grid.resize((self._w, y1 - y0), Image.Resampling.BICUBIC))
        pixels = np.asarray(self.image.crop((0, y0, self._w, y1)), dtype=np.float32)
        pixels = np.clip(pixels * (1 + strength * field)[..., None], 0, 255)
        self.image.paste(Image.fromarray((pixels + 0.5).astype(np.uint8)), (0, y0))

    def polygon(self, points: Sequence[Point], color: Color, bright: bool = False) -> None:
        """A filled polygon."""
        self._draw.polygon([(x * self._w, y * self._h) for x, y in points], fill=self._lit(color, bright))

    def rectangle(self, x0: float, y0: float, x1: float, y1: float, color: Color, bright: bool = False) -> None:
        """A filled rectangle; corners in any order."""
        self.polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], color, bright)

    def ellipse(self, x: float, y: float, rx: float, ry: float, color: Color, bright: bool = False) -> None:
        """A filled ellipse around a place, radii in fractions of the shorter side."""
        rx, ry = abs(rx) * self._unit, abs(ry) * self._unit
        x, y = x * self._w, y * self._h
        self._draw.ellipse([x - rx, y - ry, x + rx, y + ry], fill=self._lit(color, bright))

    def pie(self, x: float, y: float, radius: float, start: float, stop: float, color: Color) -> None:
        """A slice of a disc, angles in degrees."""
        r, x, y = radius * self._unit, x * self._w, y * self._h
        self._draw.pieslice([x - r, y - r, x + r, y + r], start, stop, fill=self._lit(color, False))

    def line(self, points: Sequence[Point], width: float, color: Color, bright: bool = False) -> None:
        """A line through places."""
        thick = max(1, round(width * self._unit))
        self._draw.line([(x * self._w, y * self._h) for x, y in points], self._lit(color, bright), thick, joint="curve")

    def arc(self, x: float, y: float, radius: float, start: float, stop: float, width: float, color: Color) -> None:
        """A part of a circle's edge, angles in degrees."""
        r, x, y = radius * self._unit, x * self._w, y * self._h
        box = [x - r, y - r, x + r, y + r]
        self._draw.arc(box, start, stop, fill=self._lit(color, False), width=max(1, round(width * self._unit)))

    def finish(self, grain: float = 2.0) -> Image.Image:
        """The picture in its own size, with a little grain, as a camera leaves."""
        small = self.image.resize(self.size, Image.Resampling.BOX)
        pixels = np.asarray(small, dtype=np.float32)
        pixels = pixels + self.noise.normal(0.0, grain, pixels.shape[:2]).astype(np.float32)[..., None]
        return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))
