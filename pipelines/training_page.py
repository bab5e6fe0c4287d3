"""``training.html``: how a training went: curves of everything that was logged, alarms, and reconstructions along the way.

The page stands alone: pictures are embedded as they were written during the run, curves are SVG drawn here, there are no
scripts and nothing is loaded from elsewhere. It can be made at any time from what lies in the folder, also of a run that
still goes on.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from math import floor, isfinite, log10
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from tokkit.pipelines.progress import duration
from tokkit.storage import write_atomic

PAGE_FILE = "training.html"

WIDTH, HEIGHT = 560, 200  # of a plot, in SVG units
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 30
POINTS = 400  # of a curve; more rows are thinned out
GRIDS_SHOWN = 6
COLOURS = ("#2563eb", "#d97706", "#059669", "#dc2626", "#7c3aed")


@dataclass(frozen=True)
class Plot:
    """Curves over steps that belong together: figure of the log to its label."""

    title: str
    curves: Mapping[str, str]
    logarithmic: bool = False


# The latest of each stands at the top, where the log has it: its name there, and how it is written.
FIGURES = (
    ("val_psnr", "held-out PSNR", "{:.2f} dB"),
    ("val_ssim", "held-out SSIM", "{:.3f}"),
    ("val_lpips", "held-out LPIPS", "{:.3f}"),
    ("val_si_sdr", "held-out SI-SDR", "{:.2f} dB"),
    ("val_mel_distance", "held-out mel distance", "{:.3f}"),
    ("codebook_usage", "codes in use", "{:.0%}"),
    ("perplexity", "perplexity of the codes", "{:,.0f}"),
    ("dead_codes", "dead codes", "{:,}"),
    ("loss", "loss", "{:.4g}"),
)

# What is drawn where the log has it; losses and figures of any modality.
PLOTS = (
    Plot("Loss", {"loss": "total", "reconstruction_loss": "reconstruction"}, logarithmic=True),
    Plot("PSNR, dB", {"psnr": "training", "val_psnr": "held out"}),
    Plot("SSIM, held out", {"val_ssim": "SSIM"}),
    Plot("LPIPS", {"lpips_loss": "training, weighted", "val_lpips": "held out"}),
    Plot("SI-SDR, dB", {"si_sdr": "training", "val_si_sdr": "held out"}),
    Plot("Mel distance", {"mel_distance": "training", "val_mel_distance": "held out"}),
    Plot("Parts of the reconstruction", {"time_loss": "waveform", "mel_loss": "mel spectra"}, logarithmic=True),
    Plot("Share of the codes in use", {"codebook_usage": "usage"}),
    Plot("Perplexity of the codes", {"perplexity": "perplexity"}),
    Plot("Perplexity of the first books", {f"perplexity_book_{book}": f"book {book}" for book in range(1, 6)}),
    Plot("Quantizer", {"commitment_loss": "commitment", "entropy_loss": "entropy", "codebook_loss": "codebook"}),
    Plot("Logits of the discriminator", {"real_logits": "originals", "fake_logits": "reconstructions"}),
    Plot("Adversarial losses", {"adversarial_loss": "generator, weighted", "gan_loss": "discriminator"}),
    Plot("Gradients before clipping", {"grad_norm": "generator", "discriminator_grad_norm": "discriminator"}, logarithmic=True),
    Plot("Learning rate", {"lr": "generator"}),
    Plot("Speed, items a second", {"images_per_second": "pictures", "clips_per_second": "clips"}),
)


@dataclass(frozen=True)
class _Curve:
    plot: Plot
    svg: Markup
    legend: list[tuple[str, str]]


def write_training_page(
    out: Path, title: str, options: Mapping[str, Any], result: Mapping[str, Any] | None = None, plots: Sequence[Plot] = PLOTS
) -> Path:
    """Write the page of the run in ``out`` from metrics.jsonl, alarms.jsonl and the grids.

    Args:
        options: as they are shown.
        result: how it came out; None while it goes on.
    """
    rows, alarms = _rows(out / "metrics.jsonl"), _rows(out / "alarms.jsonl")
    drawn = [curve for plot in plots if (curve := draw(plot, rows)) is not None]
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["thousands"] = lambda n: f"{n:,}"
    environment.filters["figure"] = _figure
    environment.filters["duration"] = duration
    template = environment.from_string((files(__package__) / "templates" / "training.html.j2").read_text("utf-8"))
    page = template.render(
        title=title,
        options=options,
        result=result,
        figures=_latest(rows[-1] if rows else {}),
        items=_items(result or {}),
        rows=len(rows),
        alarms=alarms,
        curves=drawn,
        grids=_grids(out / "grids"),
    )
    write_atomic(out / PAGE_FILE, page)
    return out / PAGE_FILE


def _latest(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(label, form.format(row[name]).replace("%", " %")) for name, label, form in FIGURES if row.get(name) is not None]


def _items(result: Mapping[str, Any]) -> str:
    """``39 sounds``; jobs name their number of items by their kind."""
    kinds = [kind for kind in ("pictures", "sounds") if kind in result]
    return " and ".join(f"{result[kind]:,} {kind}" for kind in kinds)


def draw(plot: Plot, rows: Sequence[Mapping[str, Any]]) -> _Curve | None:
    """A plot as SVG; None where the log has none of its figures."""
    found: dict[str, list[tuple[float, float]]] = {}
    for name, label in plot.curves.items():
        points = [(float(r["step"]), float(v)) for r in rows if (v := r.get(name)) is not None and isfinite(v)]
        if plot.logarithmic:
            points = [(x, log10(y)) for x, y in points if y > 0]
        if points:
            found[label] = _thinned(points)
    if not found:
        return None
    everything = [point for points in found.values() for point in points]
    low, high = min(y for _, y in everything), max(y for _, y in everything)
    ticks = _ticks(low, high, plot.logarithmic)
    low, high = min(low, ticks[0][0]), max(high, ticks[-1][0])
    last = max(max(x for x, _ in everything), 1.0)
    across, up = _scale(0, last, LEFT, WIDTH - RIGHT), _scale(low, high, HEIGHT - BOTTOM, TOP)
    shapes, legend = [], []
    for (label, points), colour in zip(found.items(), COLOURS, strict=False):
        path = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in points)
        shapes.append(f'<polyline fill="none" stroke="{colour}" stroke-width="1.6" points="{path}"/>')
        if len(points) == 1:
            shapes.append(f'<circle fill="{colour}" r="3" cx="{across(points[0][0]):.1f}" cy="{up(points[0][1]):.1f}"/>')
        legend.append((label, colour))
    base = HEIGHT - BOTTOM
    grid = "".join(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{up(y):.1f}" y2="{up(y):.1f}"/>' for y, _ in ticks)
    labels = "".join(f'<text class="y" x="{LEFT - 5}" y="{up(y) + 3:.1f}">{label}</text>' for y, label in ticks)
    labels += "".join(
        f'<text class="x" x="{across(x):.1f}" y="{base + 14}">{round(x):,}</text>'
        for x in (0, last / 4, last / 2, 3 * last / 4)
    )
    labels += f'<text class="y" x="{WIDTH - RIGHT}" y="{base + 14}">{round(last):,}</text>'
    labels += f'<text class="x" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 3}">step</text>'
    svg = Markup(f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{grid}{"".join(shapes)}{labels}</svg>')
    return _Curve(plot, svg, legend)


def _ticks(low: float, high: float, logarithmic: bool) -> list[tuple[float, str]]:
    """Heights of a few round values around the range, and their labels."""
    if logarithmic and high - low > 1:
        return [(float(e), f"1e{e}") for e in range(floor(low), floor(high) + 2)]
    if high - low < 1e-9 * max(abs(high), 1e-9) or high == low:
        low, high = low - (abs(low) * 0.05 or 0.5), high + (abs(high) * 0.05 or 0.5)
    step = 10.0 ** floor(log10((high - low) / 3))
    step = next(step * m for m in (1, 2, 5, 10) if (high - low) / (step * m) <= 5)
    first, last = floor(low / step), -floor(-high / step)
    values = [i * step for i in range(first, last + 1)]
    return [(v, f"{10**v:.3g}" if logarithmic else f"{v:.6g}") for v in values]


def _scale(low: float, high: float, first: float, last: float) -> Any:
    factor = (last - first) / ((high - low) or 1.0)
    return lambda value: first + (value - low) * factor


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most so many points, each the mean of its neighbours."""
    if len(points) <= POINTS:
        return points
    size = -(-len(points) // POINTS)
    parts = [points[i : i + size] for i in range(0, len(points), size)]
    return [(part[-1][0], sum(y for _, y in part) / len(part)) for part in parts]


def _grids(folder: Path) -> list[tuple[int, str]]:
    """Steps and embedded pictures, spread over the run, the first and the last among them."""
    found = sorted(folder.glob("step-*.png")) if folder.is_dir() else []
    count = min(GRIDS_SHOWN, len(found))
    chosen = sorted({round(i * (len(found) - 1) / max(count - 1, 1)) for i in range(count)})
    return [
        (
            int(found[i].stem.removeprefix("step-")),
            "data:image/png;base64," + base64.b64encode(found[i].read_bytes()).decode("ascii"),
        )
        for i in chosen
    ]


def _rows(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text("ascii").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def _figure(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e5 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
