"""Things that scenes are made of: sky and light, ground, trees, houses, boats, balloons."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

from tokkit.pipelines.sample.canvas import Canvas, Color, mix, shade, vary

COLORS: dict[str, Color] = {
    "red": (204, 52, 46),
    "orange": (232, 130, 40),
    "yellow": (240, 200, 60),
    "green": (70, 150, 76),
    "teal": (40, 150, 150),
    "blue": (52, 98, 190),
    "violet": (126, 78, 170),
    "pink": (230, 130, 160),
    "white": (240, 238, 230),
    "brown": (134, 92, 60),
    "black": (50, 48, 52),
}
BRIGHT = ("red", "orange", "yellow", "green", "teal", "blue", "violet", "pink")


@dataclass(frozen=True)
class Mood:
    """A time of day: what the sky looks like, how things are lit, and how one says it.

    Attributes:
        when: as it stands in a caption.
        sky: colors from the zenith to the horizon.
        tint, light: see :class:`~tokkit.pipelines.sample.canvas.Canvas`.
        lamp: ``sun``, ``low sun``, ``moon`` or nothing.
        lit: whether windows are.
    """

    when: str
    sky: tuple[Color, Color, Color]
    tint: Color
    light: float
    lamp: str
    lit: bool = False


MOODS = (
    Mood("at noon", ((58, 128, 214), (124, 182, 236), (206, 228, 242)), (255, 255, 255), 0.96, "sun"),
    Mood("on a clear morning", ((90, 150, 214), (170, 206, 232), (248, 232, 206)), (250, 225, 180), 0.9, "low sun"),
    Mood("at sunset", ((70, 70, 140), (206, 112, 112), (252, 186, 96)), (120, 50, 50), 0.74, "low sun"),
    Mood("at dusk", ((34, 40, 92), (104, 84, 142), (224, 142, 130)), (48, 36, 84), 0.55, "", lit=True),
    Mood("at night", ((8, 12, 36), (20, 30, 70), (48, 62, 104)), (10, 14, 40), 0.38, "moon", lit=True),
    Mood("under a grey sky", ((140, 150, 160), (172, 180, 186), (204, 208, 208)), (150, 156, 164), 0.78, ""),
)


def choose_color(rng: random.Random, names: tuple[str, ...] = BRIGHT) -> tuple[str, Color]:
    """A color's name and a shade of it."""
    name = rng.choice(names)
    return name, vary(COLORS[name], rng)


def article(words: str) -> str:
    """The words with ``a`` or ``an``."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def start(rng: random.Random, size: tuple[int, int], moods: tuple[Mood, ...] = MOODS) -> tuple[Canvas, Mood]:
    """A canvas in a mood, empty."""
    mood = rng.choice(moods)
    return Canvas(*size, rng, mood.tint, mood.light), mood


def sky(c: Canvas, mood: Mood, horizon: float) -> str:
    """Sky down to the horizon, with what is in it; returns a phrase for it, or nothing."""
    c.gradient([(0.0, mood.sky[0]), (0.55, mood.sky[1]), (1.0, mood.sky[2])], 0.0, horizon)
    if mood.lit:
        for _ in range(c.rng.randint(20, 60)):
            size = c.rng.uniform(0.002, 0.006)
            y = c.rng.uniform(0, 0.8 * horizon)
            c.ellipse(c.rng.random(), y, size, size, mix(mood.sky[0], (255, 250, 220), c.rng.uniform(0.4, 1)), bright=True)
    x = c.rng.uniform(0.15, 0.85)
    clouds = 0 if mood.lamp == "moon" else c.rng.choice([0, 1, 2, 3])
    said = _lamp(c, mood, x, horizon)
    for _ in range(clouds + (2 if mood.when == "under a grey sky" else 0)):
        cloud(c, c.rng.random(), c.rng.uniform(0.08, 0.5) * horizon, c.rng.uniform(0.06, 0.13), mood)
    return said


def _lamp(c: Canvas, mood: Mood, x: float, horizon: float) -> str:
    if mood.lamp == "moon":
        y, r = c.rng.uniform(0.15, 0.4) * horizon, c.rng.uniform(0.05, 0.09)
        crescent = c.rng.random() < 0.5
        c.ellipse(x, y, r, r, (246, 244, 224), bright=True)
        if crescent:
            c.ellipse(x + c.dx(0.45 * r), y - c.dy(0.2 * r), 0.86 * r, 0.86 * r, mood.sky[0], bright=True)
        else:
            for dx, dy, size in ((-0.3, -0.2, 0.2), (0.25, 0.3, 0.15), (0.2, -0.35, 0.12)):
                c.ellipse(x + c.dx(dx * r), y + c.dy(dy * r), size * r, size * r, (214, 210, 188), bright=True)
        c.glow(x, y, 3 * r, (150, 165, 210), 0.3)
        return "a crescent moon" if crescent else "a full moon"
    if mood.lamp:
        low = mood.lamp == "low sun"
        y, r = (c.rng.uniform(0.72, 0.95) if low else c.rng.uniform(0.12, 0.35)) * horizon, c.rng.uniform(0.05, 0.08)
        c.glow(x, y, 5 * r, (255, 214, 130) if low else (255, 252, 230), 0.75)
        c.ellipse(x, y, r, r, (255, 226, 140) if low else (255, 250, 214), bright=True)
        return "a low sun" if low else "a bright sun"
    return ""


def cloud(c: Canvas, x: float, y: float, size: float, mood: Mood) -> None:
    """A heap of puffs, lit from above."""
    body = mix(mood.sky[2], (255, 255, 255), 0.55 * c.light)
    puffs = [(c.rng.uniform(-1.6, 1.6), c.rng.uniform(-0.35, 0.1), c.rng.uniform(0.45, 0.9)) for _ in range(6)]
    for lift, tone in ((0.16, shade(body, 0.9)), (0.0, body)):
        for dx, dy, r in puffs:
            c.ellipse(x + c.dx(dx * size), y + c.dy((dy + lift) * size), r * size, 0.55 * r * size, tone, bright=True)


def ground(c: Canvas, base: float, swing: float, color: Color, bright: bool = False) -> Callable[[float], float]:
    """Rolling ground from about ``base`` down to the bottom; returns its height at x."""
    waves = [(swing / n, n * c.rng.uniform(0.5, 0.9), c.rng.uniform(0, 7)) for n in (1, 2, 3)]

    def height(x: float) -> float:
        return base + sum(a * math.sin(2 * math.pi * f * x * c.aspect + p) for a, f, p in waves)

    steps = [n / 40 for n in range(41)]
    c.polygon([*((x, height(x)) for x in steps), (1, 1.01), (0, 1.01)], color, bright)
    return height


def mountains(c: Canvas, base: float, height: float, color: Color, snow: bool) -> None:
    """A ridge of peaks that stand on ``base``, each with a shaded side, some with snow."""
    width = c.dx(0.5)
    x = -c.rng.uniform(0.2, 0.8) * width
    while x < 1:
        peak = base - height * c.rng.uniform(0.55, 1.0)
        top = x + width * c.rng.uniform(0.4, 0.6)
        tone = vary(color, c.rng, 0.01, 0.04)
        c.polygon([(x, base), (top, peak), (x + width, base)], tone)
        c.polygon([(top, peak), (x + width, base), (top + 0.06 * width, base)], shade(tone, 0.75))
        if snow:
            cap = 0.3
            left, right = top + (x - top) * cap, top + (x + width - top) * cap
            line = peak + (base - peak) * cap
            zigzag = [(left + (right - left) * n / 4, line + (0.04 if n % 2 else -0.02) * (base - peak)) for n in range(5)]
            c.polygon([(top, peak), *reversed(zigzag)], (240, 244, 250))
        x += width * c.rng.uniform(0.45, 0.8)


def tree(c: Canvas, x: float, y: float, size: float, kind: str, leaves: Color) -> None:
    """A tree that stands at (x, y): ``fir`` or ``round``."""
    trunk = vary((98, 70, 48), c.rng)
    w = c.dx(0.05 * size)
    c.rectangle(x - w, y - c.dy(0.4 * size), x + w, y, trunk)
    if kind == "fir":
        for level in range(3):
            bottom, top = y - c.dy((0.2 + 0.25 * level) * size), y - c.dy((0.62 + 0.25 * level) * size)
            half = c.dx((0.34 - 0.07 * level) * size)
            c.polygon([(x - half, bottom), (x, top), (x + half, bottom)], leaves)
            c.polygon([(x, top), (x + half, bottom), (x + 0.1 * half, bottom)], shade(leaves, 0.78))
        return
    for dx, dy, r in ((-0.2, 0.5, 0.22), (0.2, 0.5, 0.22), (0.0, 0.66, 0.3), (0.02, 0.46, 0.24)):
        c.ellipse(x + c.dx(dx * size), y - c.dy(dy * size), r * size, r * size, shade(leaves, 0.86))
    for dx, dy, r in ((-0.14, 0.58, 0.15), (0.02, 0.76, 0.16)):
        c.ellipse(x + c.dx(dx * size), y - c.dy(dy * size), r * size, r * size, shade(leaves, 1.1))


def house(c: Canvas, x: float, y: float, size: float, wall: Color, roof: Color, lit: bool, floors: int = 1) -> None:
    """A house whose front stands on (x, y) in the middle; ``size`` is its width."""
    half, floor = c.dx(size / 2), c.dy(0.55 * size)
    top = y - floors * floor
    c.rectangle(x + 0.45 * half, top - c.dy(0.42 * size), x + 0.65 * half, top, shade(roof, 0.7))
    c.rectangle(x - half, top, x + half, y, wall)
    c.rectangle(x + 0.7 * half, top, x + half, y, shade(wall, 0.85))
    peak = top - c.dy(0.45 * size)
    c.polygon([(x - 1.18 * half, top), (x - 0.1 * half, peak), (x + 0.1 * half, peak), (x + 1.18 * half, top)], roof)
    c.polygon([(x + 0.1 * half, peak), (x + 1.18 * half, top), (x + 0.6 * half, top)], shade(roof, 0.8))
    glass = (255, 214, 110) if lit else (120, 150, 170)
    for level in range(floors):
        for place in (-0.55, 0.5) if level == 0 else (-0.55, 0.0, 0.5):
            wx, wy = x + place * half, y - level * floor - 0.62 * floor
            w, h = 0.2 * half, 0.2 * floor
            c.rectangle(wx - 1.2 * w, wy - 1.2 * h, wx + 1.2 * w, wy + 1.2 * h, shade(wall, 0.72))
            c.rectangle(wx - w, wy - h, wx + w, wy + h, glass, bright=lit)
    c.rectangle(x - 0.14 * half, y - 0.62 * floor, x + 0.16 * half, y, shade(roof, 0.6))


def boat(c: Canvas, x: float, y: float, size: float, hull: Color, sail: Color) -> None:
    """A sailing boat on the water line (x, y)."""
    w, h = c.dx(size), c.dy(size)
    c.polygon(
        [(x - 0.5 * w, y - 0.12 * h), (x + 0.55 * w, y - 0.12 * h), (x + 0.38 * w, y + 0.08 * h), (x - 0.36 * w, y + 0.08 * h)],
        hull,
    )
    c.rectangle(x - 0.5 * w, y - 0.14 * h, x + 0.55 * w, y - 0.1 * h, shade(hull, 0.7))
    c.line([(x, y - 0.12 * h), (x, y - 1.05 * h)], 0.03 * size, (110, 80, 56))
    c.polygon([(x + 0.03 * w, y - 1.0 * h), (x + 0.5 * w, y - 0.22 * h), (x + 0.03 * w, y - 0.2 * h)], sail)
    c.polygon([(x - 0.03 * w, y - 0.92 * h), (x - 0.38 * w, y - 0.22 * h), (x - 0.03 * w, y - 0.2 * h)], shade(sail, 0.86))


def balloon(c: Canvas, x: float, y: float, r: float, one: Color, two: Color) -> None:
    """A hot-air balloon around (x, y), striped in two colors."""
    basket = y + c.dy(1.75 * r)
    for side in (-1, 1):
        c.line([(x + side * c.dx(0.7 * r), y + c.dy(0.7 * r)), (x + side * c.dx(0.16 * r), basket)], 0.012, (90, 70, 60))
    c.polygon(
        [(x - c.dx(0.8 * r), y + c.dy(0.6 * r)), (x + c.dx(0.8 * r), y + c.dy(0.6 * r)), (x, y + c.dy(1.5 * r))],
        shade(one, 0.8),
    )
    for n, width in enumerate((1.0, 0.78, 0.5, 0.2)):
        c.ellipse(x, y, width * r, 1.05 * r, (one, two)[n % 2])
    c.ellipse(x - c.dx(0.35 * r), y - c.dy(0.4 * r), 0.16 * r, 0.26 * r, shade(one, 1.35))
    c.rectangle(x - c.dx(0.2 * r), basket, x + c.dx(0.2 * r), basket + c.dy(0.28 * r), (150, 104, 62))


def lighthouse(c: Canvas, x: float, y: float, size: float, stripe: Color, lit: bool) -> None:
    """A striped lighthouse on a rock at (x, y)."""
    c.ellipse(x, y, 0.4 * size, 0.12 * size, (96, 90, 88))
    for n in range(5):
        low, high = y - c.dy(0.2 * n * size), y - c.dy(0.2 * (n + 1) * size)
        a, b = c.dx((0.16 - 0.015 * n) * size), c.dx((0.145 - 0.015 * n) * size)
        c.polygon([(x - a, low), (x + a, low), (x + b, high), (x - b, high)], stripe if n % 2 else (238, 234, 226))
    top = y - c.dy(size)
    if lit:
        c.glow(x, top - c.dy(0.08 * size), 0.35, (255, 236, 150), 0.7)
    c.rectangle(x - c.dx(0.07 * size), top - c.dy(0.16 * size), x + c.dx(0.07 * size), top, (255, 232, 130), bright=lit)
    c.polygon(
        [
            (x - c.dx(0.1 * size), top - c.dy(0.16 * size)),
            (x + c.dx(0.1 * size), top - c.dy(0.16 * size)),
            (x, top - c.dy(0.28 * size)),
        ],
        stripe,
    )


def birds(c: Canvas, count: int, horizon: float) -> None:
    """A few birds far away."""
    for _ in range(count):
        x, y, size = c.rng.random(), c.rng.uniform(0.1, 0.6) * horizon, c.rng.uniform(0.015, 0.03)
        w, h = c.dx(size), c.dy(0.5 * size)
        c.line(
            [(x - w, y - h), (x - 0.4 * w, y - 1.2 * h), (x, y), (x + 0.4 * w, y - 1.2 * h), (x + w, y - h)],
            0.008,
            (60, 60, 70),
        )
