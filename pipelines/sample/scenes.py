"""Pictures with captions: landscapes, seas, balloons, streets, still lives, charts and shapes, each drawn from a generator.

A caption says what was drawn, and nothing else. ``subject`` is the part of it that running text can take up.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from tokkit.pipelines.sample import motifs
from tokkit.pipelines.sample.canvas import Canvas, mix, shade, vary
from tokkit.pipelines.sample.motifs import COLORS, MOODS, article, choose_color

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True)
class Scene:
    """A drawn picture.

    Attributes:
        kind: which of :data:`SCENES` drew it.
        image: RGB.
        caption: one sentence.
        subject: what it shows, as a noun phrase.
    """

    kind: str
    image: Image.Image
    caption: str
    subject: str


Drawn = tuple[Canvas, str, str]


def _caption(rng: random.Random, subject: str, place: str, when: str, extra: str = "") -> str:
    said = rng.choice(["{0} {1} {2}", "{2}, {0} {1}", "A picture of {0} {1}, {2}", "{0} {1}, seen {2}"])
    text = said.format(subject, place, when) + (f", with {extra}" if extra else "")
    return f"{text[0].upper()}{text[1:]}."


def countryside(rng: random.Random, size: tuple[int, int]) -> Drawn:
    """Hills with trees and perhaps a house."""
    c, mood = motifs.start(rng, size)
    horizon = rng.uniform(0.5, 0.62)
    above = motifs.sky(c, mood, 1.0)
    season, leaf = rng.choice([("green", (80, 150, 62)), ("autumn", (198, 118, 44)), ("spring", (132, 182, 82))])
    far = mix(vary(leaf, rng), mood.sky[2], 0.5)
    motifs.ground(c, horizon, 0.06, far)
    motifs.ground(c, horizon + 0.12, 0.05, mix(vary(leaf, rng), (70, 120, 70), 0.4))
    field = vary((104, 160, 70) if season != "autumn" else (178, 152, 74), rng)
    height = motifs.ground(c, horizon + 0.24, 0.035, field)
    c.texture(horizon + 0.1, 1.0, 0.05, 40, 2.0)
    if rng.random() < 0.4:
        motifs.birds(c, rng.randint(3, 6), horizon)
    name, wall = choose_color(rng, ("white", "yellow", "red", "blue", "pink"))
    subject = ""
    x = rng.uniform(0.25, 0.75)
    if rng.random() < 0.65:
        roof = vary(rng.choice([(150, 66, 52), (92, 84, 96), (120, 86, 62)]), rng)
        motifs.house(c, x, height(x) + 0.05, rng.uniform(0.2, 0.3), wall, roof, mood.lit)
        subject = article(f"{name} house")
    kind, count = rng.choice(["fir", "round"]), rng.randint(2, 6)
    for n in range(count):
        side = (x + 0.22 + (n + rng.random()) * 0.6 / count) % 1
        motifs.tree(c, side, height(side) + rng.uniform(0.02, 0.12), rng.uniform(0.25, 0.4), kind, vary(leaf, rng, 0.03))
    trees = f"{NUMBERS[count]} {'fir trees' if kind == 'fir' else 'trees'}"
    subject = f"{subject} and {trees}" if subject else trees
    return c, _caption(rng, subject, f"among {season} hills", mood.when, above), subject


def lake(rng: random.Random, size: tuple[int, int]) -> Drawn:
    """Mountains over a lake that mirrors them."""
    c, mood = motifs.start(rng, size)
    shore = rng.uniform(0.52, 0.64)
    above = motifs.sky(c, mood, shore)
    snow = rng.random() < 0.6
    motifs.mountains(c, shore, 0.36, mix((112, 120, 150), mood.sky[2], 0.45), snow)
    motifs.mountains(c, shore, 0.2, vary((86, 104, 96), rng), False)
    _mirror(c, shore, (58, 100, 130))
    for n in range(rng.randint(3, 8)):
        x = n / 8 + rng.uniform(0, 0.1)
        motifs.tree(c, x, shore + 0.01, rng.uniform(0.1, 0.18), "fir", vary((48, 94, 66), rng))
    subject = f"{'snowy' if snow else 'bare'} mountains"
    if rng.random() < 0.5:
        name, hull = choose_color(rng)
        motifs.boat(c, rng.uniform(0.2, 0.8), rng.uniform(0.74, 0.86), rng.uniform(0.16, 0.26), hull, COLORS["white"])
        return c, _caption(rng, article(f"{name} boat"), f"on a lake below {subject}", mood.when, above), f"{subject} by a lake"
    return c, _caption(rng, subject, "mirrored in a lake", mood.when, above), f"{subject} by a lake"


def _mirror(c: Canvas, shore: float, water: tuple[int, int, int]) -> None:
    """What stands above the shore upside down below it, in the water's color."""
    w, h = c.image.size
    y = round(shore * h)
    depth = min(h - y, y)
    above = c.image.crop((0, y - depth, w, y)).transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    below = Image.new("RGB", (w, h - y), mix(c.tint, water, c.light))
    below.paste(above, (0, 0))
    c.image.paste(Image.blend(below, Image.new("RGB", below.size, mix(c.tint, water, c.light)), 0.45), (0, y))
    c.texture(shore, 1.0, 0.07, 30, 4.0)


def seaside(rng: random.Random, size: tuple[int, int]) -> Drawn:
    """The sea with boats, perhaps a lighthouse."""
    c, mood = motifs.start(rng, size)
    horizon = rng.uniform(0.42, 0.58)
    above = motifs.sky(c, mood, horizon)
    deep = vary((36, 104, 150), rng)
    c.gradient([(0.0, mix(deep, mood.sky[2], 0.5)), (1.0, shade(deep, 0.75))], horizon, 1.0, bright=False)
    c.texture(horizon, 1.0, 0.09, 26, 3.5)
    for _ in range(rng.randint(8, 16)):
        y = rng.uniform(horizon + 0.02, 0.98)
        x, w = rng.random(), c.dx(0.05 + 0.12 * (y - horizon))
        c.line([(x - w, y), (x, y - 0.006), (x + w, y)], 0.006, mix(deep, (255, 255, 255), 0.5))
    extra = above
    if rng.random() < 0.45:
        name, stripe = choose_color(rng, ("red", "blue", "black"))
        left = rng.random() < 0.5
        motifs.lighthouse(c, 0.14 if left else 0.86, horizon + 0.06, rng.uniform(0.34, 0.46), stripe, mood.lit)
        extra = f"a {name} and white lighthouse on the {'left' if left else 'right'}"
    name, hull = choose_color(rng)
    sail_name, sail = choose_color(rng, ("white", "white", "yellow", "orange", "red"))
    count = rng.choice([1, 1, 1, 2, 3])
    for n in range(count):
        x = (n + rng.uniform(0.3, 0.7)) / count * 0.7 + 0.15
        y = rng.uniform(horizon + 0.14, 0.9)
        motifs.boat(c, x, y, 0.14 + 0.4 * (y - horizon), hull, sail)
    boats = f"{NUMBERS[count]} {name} boats" if count > 1 else article(f"{name} boat")
    subject = f"{boats} with {'white' if sail_name == 'white' else sail_name} sails"
    return c, _caption(rng, subject, rng.choice(["on the sea", "off the coast", "on calm water"]), mood.when, extra), subject


def balloons(rng: random.Random, size: tuple[int, int]) -> Drawn:
    """Hot-air balloons over fields."""
    c, mood = motifs.start(rng, size, (MOODS[0], MOODS[1], MOODS[2], MOODS[5]))
    motifs.sky(c, mood, 1.0)
    motifs.ground(c, 0.8, 0.03, vary((120, 158, 110), rng))
    motifs.ground(c, 0.87, 0.03, vary((96, 140, 72), rng))
    c.texture(0.78, 1.0, 0.06, 40, 2.0)
    count = rng.randint(1, 5)
    colors = []
    for n in range(count):
        name, one = choose_color(rng)
        colors.append(name)
        r = rng.uniform(0.1, 0.17) if count > 1 else rng.uniform(0.18, 0.24)
        x = (n + rng.uniform(0.35, 0.65)) / count
        two = rng.choice([COLORS["white"], COLORS["yellow"], vary(shade(one, 1.45), rng)])
        motifs.balloon(c, x, rng.uniform(0.22, 0.5), r, one, two)
    if count == 1:
        subject = article(f"{colors[0]} hot-air balloon")
    else:
        subject = f"{NUMBERS[count]} hot-air balloons, {', '.join(colors[:-1])} and {colors[-1]}"
    return c, _caption(rng, subject, rng.choice(["over green fields", "in the sky", "above the plain"]), mood.when), subject


def street(rng: random.Random, size: tuple[int, int]) -> Drawn:
    """A row of houses."""
    c, mood = motifs.start(rng, size)
    above = motifs.sky(c, mood, 0.86)
    motifs.mountains(c, 0.8, 0.22, mix((120, 130, 140), mood.sky[2], 0.6), False)
    c.gradient([(0.0, (128, 124, 122)), (1.0, (92, 90, 92))], 0.84, 1.0, bright=False)
    count = max(2, min(5, round(c.aspect * 2.6)))
    width = 1 / count
    names = []
    for n in range(count):
        name, wall = choose_color(rng, ("white", "yellow", "orange", "red", "pink", "blue", "teal", "green", "brown"))
        names.append(name)
        roof = vary(rng.choice([(140, 62, 50), (84, 78, 90), (110, 80, 60)]), rng)
        span = 0.86 * width / c.dx(1.0)
        motifs.house(c, (n + 0.5) * width, 0.86, span, wall, roof, mood.lit, rng.choice([1, 2, 2]) if span < 0.45 else 1)
    c.texture(0.4, 1.0, 0.03, 60)
    if rng.random() < 0.5:
        x = rng.uniform(0.1, 0.9)
        motifs.tree(c, x, 0.92, 0.3, "round", vary((84, 142, 74), rng))
    subject = f"{NUMBERS[count]} houses, {', '.join(names[:-1])} and {names[-1]}"
    return c, _caption(rng, subject, rng.choice(["along a street", "in a row"]), mood.when, above), subject


def still_life(rng: random.Random, size: tuple[int, int]) -> Drawn:
    """Fruit in a bowl, or flowers in a vase."""
    c = Canvas(*size, rng)
    wall_name, wall = choose_color(rng, ("teal", "pink", "yellow", "violet", "brown", "white", "blue"))
    wall = mix(wall, (236, 226, 210), 0.45)
    c.gradient([(0.0, shade(wall, 0.82)), (1.0, wall)], 0.0, 0.72)
    c.glow(rng.uniform(0.1, 0.9), 0.1, 0.7, (255, 244, 214), 0.4)
    c.texture(0.0, 0.72, 0.03, 16)
    table = vary((150, 104, 66), rng)
    c.gradient([(0.0, table), (1.0, shade(table, 0.7))], 0.7, 1.0)
    c.texture(0.7, 1.0, 0.08, 30, 5.0)
    name, pot = choose_color(rng, ("white", "blue", "teal", "black", "brown", "orange"))
    x = rng.uniform(0.4, 0.6)
    c.ellipse(x + c.dx(0.08), 0.87, 0.3, 0.05, shade(table, 0.6))
    if rng.random() < 0.5:
        fruit_name, fruit = rng.choice(
            [("apples", (196, 46, 44)), ("oranges", (238, 140, 36)), ("lemons", (240, 214, 70)), ("plums", (98, 52, 110))]
        )
        count = rng.randint(3, 5)
        for n in range(count):
            fx = x + c.dx(0.34 * ((n + 0.5) / count - 0.5) * 1.5)
            tone = vary(fruit, rng)
            r = rng.uniform(0.09, 0.11)
            fy = 0.87 - c.dy(0.27 + 0.05 * (n % 2))
            c.ellipse(fx, fy, r, r, shade(tone, 0.85))
            c.ellipse(fx - c.dx(0.015), fy - c.dy(0.015), 0.8 * r, 0.8 * r, tone)
            c.ellipse(fx - c.dx(0.035), fy - c.dy(0.04), 0.2 * r, 0.2 * r, shade(tone, 1.6))
        edge = 0.87 - c.dy(0.24)
        c.polygon([(x - c.dx(0.34), edge), (x + c.dx(0.34), edge), (x + c.dx(0.14), 0.88), (x - c.dx(0.14), 0.88)], pot)
        c.polygon(
            [(x + c.dx(0.1), edge), (x + c.dx(0.34), edge), (x + c.dx(0.14), 0.88), (x + c.dx(0.06), 0.88)], shade(pot, 0.82)
        )
        subject = f"{NUMBERS[count]} {fruit_name} in {article(name + ' bowl')}"
    else:
        flower_name, flower = choose_color(rng, ("red", "yellow", "pink", "violet", "orange", "white"))
        count = rng.randint(2, 5)
        for n in range(count):
            fx, fy = x + c.dx(0.42 * ((n + 0.5) / count - 0.5)), 0.87 - c.dy(rng.uniform(0.56, 0.72))
            c.line([(x, 0.87 - c.dy(0.3)), (fx, fy)], 0.016, (70, 120, 60))
            for petal in range(6):
                angle = petal * math.pi / 3 + n
                tone = vary(flower, rng, 0.01, 0.05)
                c.ellipse(fx + c.dx(0.05 * math.cos(angle)), fy + c.dy(0.05 * math.sin(angle)), 0.036, 0.036, tone)
            c.ellipse(fx, fy, 0.03, 0.03, (244, 206, 84) if flower_name != "yellow" else (130, 84, 40))
        c.polygon(
            [
                (x - c.dx(0.1), 0.87 - c.dy(0.36)),
                (x + c.dx(0.1), 0.87 - c.dy(0.36)),
                (x + c.dx(0.17), 0.87),
                (x - c.dx(0.17), 0.87),
            ],
            pot,
        )
        c.polygon(
            [
                (x + c.dx(0.04), 0.87 - c.dy(0.36)),
                (x + c.dx(0.1), 0.87 - c.dy(0.36)),
                (x + c.dx(0.17), 0.87),
                (x + c.dx(0.07), 0.87),
            ],
            shade(pot, 0.8),
        )
        subject = f"{NUMBERS[count]} {flower_name} flowers in {article(name + ' vase')}"
    return c, _caption(rng, subject, "on a wooden table", f"before {article(wall_name + ' wall')}"), subject


def chart(rng: random.Random, size: tuple[int, int]) -> Drawn:
    """A bar, line or pie chart."""
    c = Canvas(*size, rng)
    paper = rng.choice([(252, 252, 250), (246, 240, 228), (236, 242, 248)])
    c.gradient([(0.0, paper), (1.0, paper)])
    what = rng.choice(["rainfall", "visitors", "harvest", "temperature", "sales", "snow depth"])
    kind = rng.choice(["bar", "bar", "line", "pie"])
    count = rng.randint(3, 7)
    values = [rng.uniform(0.15, 1.0) for _ in range(count)]
    name, tone = choose_color(rng)
    if kind == "pie":
        angle = -90.0
        for n, value in enumerate(values):
            sweep = 360 * value / sum(values)
            c.pie(0.5, 0.5, 0.4, angle, angle + sweep, vary(COLORS[motifs.BRIGHT[n % len(motifs.BRIGHT)]], rng))
            angle += sweep
        subject = f"a pie chart of {what} in {NUMBERS[count]} slices"
        return c, f"A pie chart of {what}: {NUMBERS[count]} slices.", subject
    for n in range(1, 5):
        c.line([(0.12, 0.88 - 0.18 * n), (0.95, 0.88 - 0.18 * n)], 0.004, (206, 208, 212))
    places = [0.14 + 0.8 * (n + 0.5) / count for n in range(count)]
    tops = [0.88 - 0.72 * value for value in values]
    if kind == "bar":
        half = 0.3 * 0.8 / count
        for x, y in zip(places, tops, strict=True):
            c.rectangle(x - half, y, x + half, 0.88, tone)
            c.rectangle(x + 0.6 * half, y, x + half, 0.88, shade(tone, 0.85))
    else:
        c.line(list(zip(places, tops, strict=True)), 0.02, tone)
        for x, y in zip(places, tops, strict=True):
            c.ellipse(x, y, 0.025, 0.025, shade(tone, 0.7))
    c.line([(0.12, 0.08), (0.12, 0.88), (0.96, 0.88)], 0.012, (70, 72, 80))
    best = values.index(max(values)) + 1
    units = f"{NUMBERS[count]} {'bars' if kind == 'bar' else 'points'}"
    subject = f"a {kind} chart of {what} with {units}"
    return c, f"A {name} {kind} chart of {what} with {units}; number {best} is the highest.", subject


def shapes(rng: random.Random, size: tuple[int, int]) -> Drawn:
    """Plain shapes on a plain ground, to be counted."""
    c = Canvas(*size, rng)
    ground_name, base = choose_color(rng, ("white", "yellow", "pink", "teal", "black", "blue"))
    base = mix(base, (255, 255, 255), 0.35) if ground_name != "black" else base
    c.gradient([(0.0, shade(base, 1.1)), (1.0, shade(base, 0.9))])
    names = [n for n in motifs.BRIGHT if n != ground_name]
    groups = rng.choice([1, 2])
    said = []
    cells = [(x, y) for y in range(3) for x in range(3)]
    rng.shuffle(cells)
    for _ in range(groups):
        name = names.pop(rng.randrange(len(names)))
        form = rng.choice(["circle", "square", "triangle", "ring", "star"])
        count = rng.randint(1, 4)
        for _ in range(count):
            cx, cy = cells.pop()
            x, y = (cx + rng.uniform(0.42, 0.58)) / 3, (cy + rng.uniform(0.42, 0.58)) / 3
            _shape(c, form, x, y, rng.uniform(0.1, 0.145), vary(COLORS[name], rng, 0.01, 0.04), base)
        said.append(f"{NUMBERS[count]} {name} {form}{'s' if count > 1 else ''}")
    subject = " and ".join(said)
    return c, f"{subject[0].upper()}{subject[1:]} on {article(ground_name + ' ground')}.", subject


def _shape(c: Canvas, form: str, x: float, y: float, r: float, color: tuple[int, int, int], base: tuple[int, int, int]) -> None:
    if form in ("circle", "ring"):
        c.ellipse(x, y, r, r, color)
        if form == "ring":
            c.ellipse(x, y, 0.55 * r, 0.55 * r, base)
        return
    turn = c.rng.uniform(0, 6.28)
    corners = {"square": 4, "triangle": 3, "star": 10}[form]
    points = []
    for n in range(corners):
        length = r * (0.45 if form == "star" and n % 2 else 1.0)
        angle = turn + 2 * math.pi * n / corners
        points.append((x + c.dx(length * math.cos(angle)), y + c.dy(length * math.sin(angle))))
    c.polygon(points, color)


SCENES: dict[str, Callable[[random.Random, tuple[int, int]], Drawn]] = {
    "countryside": countryside,
    "lake": lake,
    "seaside": seaside,
    "balloons": balloons,
    "street": street,
    "still-life": still_life,
    "chart": chart,
    "shapes": shapes,
}


def draw_scene(rng: random.Random, kind: str | None = None) -> Scene:
    """Draw a picture of a kind (or of any), 96 to 192 pixels wide and high."""
    kind = kind or rng.choice(sorted(SCENES))
    long, ratio = rng.randrange(144, 193, 8), rng.choice([1.0, 1.0, 0.9, 0.8, 0.75, 0.67])
    short = max(96, round(long * ratio))
    size = (short, long) if rng.random() < 0.3 else (long, short)
    canvas, caption, subject = SCENES[kind](rng, size)
    return Scene(kind, canvas.finish(), caption, subject)
