"""``eval.html``: the figures of several tokenizers side by side, plots of them, and pictures beside their reconstructions.

The page stands alone: pictures are embedded as PNG, plots are SVG drawn here, there are no scripts and nothing is loaded from
elsewhere. It is a function of the figures and the pictures, so the same evaluation gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from math import ceil, floor, log10

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray

from tokkit.pipelines.eval_scores import Example, PictureScore, TokenizerMeter, TokenizerScores
from tokkit.pipelines.report import data_uri

WIDTH, HEIGHT = 560, 190  # of a plot, in SVG units
LEFT, RIGHT, TOP, BOTTOM = 46, 24, 12, 30
BINS = 40
TICKS = 6
CURVE_POINTS = 160

# Below so many codes counted for each one in the codebook, usage and perplexity say more of the input's size.
ENOUGH_CODES = 50

# Below so many pictures, rFID comes out well above its value at the customary 50,000.
ENOUGH_PICTURES = 10_000


@dataclass(frozen=True)
class _Figure:
    """A picture on the page: what it was (where it is not shown above already) and what came back."""

    original: str | None
    reconstruction: str
    score: PictureScore


@dataclass(frozen=True)
class _Section:
    """What the page shows of one tokenizer."""

    scores: TokenizerScores
    few_codes: bool
    histogram: Markup
    ranks: Markup
    sample: list[_Figure]
    worst: list[_Figure]
    best: list[_Figure]


def render_page(described: Mapping[str, object], meters: Sequence[TokenizerMeter], scores: Sequence[TokenizerScores]) -> str:
    """The page as HTML; ``described`` is the content of eval.json."""
    low = floor(min(s.psnr.minimum for s in scores))
    high = max(low + 1, ceil(max(s.psnr.maximum for s in scores)))
    sections, above = [], ""
    for meter, score in zip(meters, scores, strict=True):
        sample = [_figure(example) for example in meter.sample.examples]
        originals = "".join(str(figure.original) for figure in sample)
        if originals == above:
            sample = [_Figure(None, figure.reconstruction, figure.score) for figure in sample]
        above = originals
        sections.append(
            _Section(
                scores=score,
                few_codes=score.codebook.codes < ENOUGH_CODES * score.codebook.size * score.codebook.codebooks,
                histogram=histogram(meter.psnr, low, high, score.psnr.median),
                ranks=rank_plot(meter.counts),
                sample=sample,
                worst=[_figure(example) for example in meter.worst.examples],
                best=[_figure(example) for example in meter.best.examples],
            )
        )
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["thousands"] = lambda n: f"{n:,}"
    environment.filters["percent"] = lambda x: f"{100 * x:.1f} %"
    environment.filters["fixed"] = lambda x, digits: "–" if x is None else f"{x:.{digits}f}"
    template = environment.from_string((files(__package__) / "templates" / "eval.html.j2").read_text("utf-8"))
    resolutions = sorted({s.resolution for s in scores})
    return template.render(
        result=described,
        sections=sections,
        resolutions=resolutions,
        enough_codes=ENOUGH_CODES,
        enough_pictures=ENOUGH_PICTURES,
        best=_best(scores),
    )


def histogram(values: Sequence[float], low: float, high: float, median: float) -> Markup:
    """SVG: how many values lie where between ``low`` and ``high`` dB, and a line at the median."""
    counts, edges = np.histogram(np.asarray(values), bins=BINS, range=(low, high))
    tallest = max(int(counts.max()), 1)
    across, up = _scale(low, high, LEFT, WIDTH - RIGHT), _scale(0, tallest, HEIGHT - BOTTOM, TOP)
    bars = "".join(
        f'<rect class="bar" x="{across(a):.1f}" y="{up(n):.1f}" width="{across(b) - across(a) - 1:.1f}" '
        f'height="{up(0) - up(n):.1f}"><title>{n} pictures, {a:.1f} to {b:.1f} dB</title></rect>'
        for n, a, b in zip(counts.tolist(), edges[:-1].tolist(), edges[1:].tolist(), strict=True)
        if n
    )
    line = f'<line class="mark" x1="{across(median):.1f}" x2="{across(median):.1f}" y1="{TOP}" y2="{up(0):.1f}"/>'
    xs = [(across(v), f"{v:g}") for v in np.linspace(low, high, TICKS).round(1).tolist()]
    return _plot(bars + line, xs, [(up(v), f"{v}") for v in sorted({0, tallest // 2, tallest})], "PSNR, dB", "pictures")


def rank_plot(counts: NDArray[np.int64]) -> Markup:
    """SVG: share of the codes' occurrences (log scale) by the codes' rank, with a line at an even use of all."""
    used = np.sort(counts[counts > 0])[::-1]
    total = int(used.sum())
    ranks = np.unique(np.geomspace(1, len(used), CURVE_POINTS).round().astype(np.int64))
    shares = used[ranks - 1] / total
    floor_exponent, top_exponent = floor(log10(min(float(shares.min()), 1 / len(counts)))), ceil(log10(float(shares.max())))
    top_exponent = max(top_exponent, floor_exponent + 1)
    across = _scale(1, max(len(counts), 2), LEFT, WIDTH - RIGHT)
    up = _scale(floor_exponent, top_exponent, HEIGHT - BOTTOM, TOP)
    points = " ".join(f"{across(r):.1f},{up(log10(s)):.1f}" for r, s in zip(ranks.tolist(), shares.tolist(), strict=True))
    even = up(log10(1 / len(counts)))
    shapes = f'<polyline class="curve" points="{points}"/>'
    shapes += f'<line class="mark" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{even:.1f}" y2="{even:.1f}"/>'
    xs = [(across(v), f"{round(v):,}") for v in np.linspace(1, max(len(counts), 2), 5).tolist()]
    return _plot(shapes, xs, [(up(e), f"1e{e}") for e in range(floor_exponent, top_exponent + 1)], "rank of the code", "share")


def _plot(shapes: str, xs: Sequence[tuple[float, str]], ys: Sequence[tuple[float, str]], across: str, up: str) -> Markup:
    """Axes with ticks around some shapes; all text is ours."""
    base = HEIGHT - BOTTOM
    ticks = "".join(f'<text class="x" x="{x:.1f}" y="{base + 13}">{label}</text>' for x, label in xs)
    ticks += "".join(f'<text class="y" x="{LEFT - 5}" y="{y + 3:.1f}">{label}</text>' for y, label in ys)
    grid = "".join(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>' for y, _ in ys)
    title = f'<text class="x" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 3}">{across}</text>'
    title += f'<text class="x" transform="rotate(-90 9 {base / 2})" x="9" y="{base / 2}">{up}</text>'
    return Markup(f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{grid}{shapes}{ticks}{title}</svg>')


class _scale:  # noqa: N801 - used like a function
    """A linear map from one range to another."""

    def __init__(self, low: float, high: float, first: float, last: float) -> None:
        self.low, self.first = low, first
        self.factor = (last - first) / (high - low)

    def __call__(self, value: float) -> float:
        return self.first + (value - self.low) * self.factor


def _figure(example: Example) -> _Figure:
    return _Figure(data_uri(example.original), data_uri(example.reconstruction), example.score)


def _best(scores: Sequence[TokenizerScores]) -> dict[str, float]:
    """The best mean of each metric among several tokenizers, to be set off; empty for a single one."""
    if len(scores) < 2:
        return {}
    found: dict[str, float] = {"psnr": max(s.psnr.mean for s in scores)}
    if ssims := [s.ssim.mean for s in scores if s.ssim is not None]:
        found["ssim"] = max(ssims)
    if distances := [s.lpips.mean for s in scores if s.lpips is not None]:
        found["lpips"] = min(distances)
    if rfids := [s.rfid for s in scores if s.rfid is not None]:
        found["rfid"] = min(rfids)
    return found
