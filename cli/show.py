"""Results as tables for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from tokkit.documents import Outcome

if TYPE_CHECKING:
    from pathlib import Path

    from tokkit.features.manifest import CacheManifest
    from tokkit.pipelines.demo import DemoResult
    from tokkit.pipelines.pack import AdviseResult, SplitResult
    from tokkit.pipelines.remove import RemoveResult
    from tokkit.shards.manifest import Manifest, RunManifest

OUTCOMES = [outcome.value for outcome in Outcome]


def _table(console: Console, title: str, first: str, columns: list[str]) -> Table:
    """Print a title, and make the table that comes below it (a title of the table's own would wrap at its width)."""
    console.print(f"\n{title}", style="bold")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(first)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def show_features(console: Console, manifest: CacheManifest) -> None:
    """What a feature cache holds, and what became of every document and item."""
    show_outcomes(console, manifest)
    columns = ["documents", "text ids", "items", "feature tokens", "a mean item", "MB", "relative error", "largest"]
    table = _table(console, f"Features of {manifest.dim:,} in {manifest.dtype}", "split", columns)
    for name, split in manifest.splits.items():
        found = manifest.features[name]
        mean = found.bytes / max(found.items, 1) / 1e6
        cells = [f"{split.documents:,}", f"{split.tokens_by_kind.get('text', 0):,}", f"{found.items:,}", f"{found.tokens:,}"]
        cells += [f"{found.tokens / max(found.items, 1):,.0f} tokens, {mean:,.2f} MB", f"{found.bytes / 1e6:,.1f}"]
        table.add_row(name, *cells, f"{100 * found.error:.2g} %", f"{100 * found.worst_error:.2g} %")
    console.print(table)
    _show_trial(console, manifest)


def show_warnings(console: Console, manifest: RunManifest) -> None:
    """What was left out because nothing was named that takes it."""
    from tokkit.pipelines.lacking import warnings_of

    for warning in warnings_of(manifest):
        console.print(f"warning: {warning}", style="yellow")


def show_trained(console: Console, result: DemoResult) -> None:
    """The tokenizers that the demo trained, and how good they are on what was held out."""
    table = _table(console, "Tokenizers", "", ["trained on", "steps", "seconds", "codes", "in use", "held out"])
    text, vq, codec = result.text, result.vq, result.codec
    figure = f"{text.bytes_per_token:.2f} bytes a token"
    table.add_row("text", f"{text.training_bytes / 1e6:.1f} MB", "", "", f"{text.vocab_size:,}", "", figure)
    figure = "" if vq.val_psnr is None else f"{vq.val_psnr:.1f} dB PSNR"
    used = f"{100 * vq.codebook_usage:.0f} %"
    table.add_row(
        "image", f"{vq.pictures} pictures", f"{vq.steps:,}", f"{vq.seconds:.0f}", f"{vq.codebook_size:,}", used, figure
    )
    if codec is not None:
        figure = "" if codec.val_mel_distance is None else f"mel distance {codec.val_mel_distance:.2f}"
        codes, used = f"{len(codec.perplexity)} x {codec.codebook_size:,}", f"{100 * codec.codebook_usage:.0f} %"
        table.add_row("audio", f"{codec.sounds} sounds", f"{codec.steps:,}", f"{codec.seconds:.0f}", codes, used, figure)
    console.print(table)
    if codec is not None and codec.mean_predictor is not None:
        console.print(f"(to answer every sound with the mean spectrum comes to a mel distance of {codec.mean_predictor:.2f})")


def show_manifest(console: Console, manifest: Manifest) -> None:
    """Documents and media items by source and outcome, and tokens by modality."""
    show_outcomes(console, manifest)
    kinds = sorted({kind for split in manifest.splits.values() for kind in split.tokens_by_kind})
    if manifest.vocabulary_origin != "built":
        console.print(f"\nIds are those of {manifest.vocabulary_origin}: {manifest.vocabulary_size:,} in all, {manifest.dtype}")
    table = _table(console, "Tokens", "split", ["documents", *kinds, "in all", "shards"])
    for name, split in manifest.splits.items():
        cells = [f"{split.tokens_by_kind.get(kind, 0):,}" for kind in kinds]
        table.add_row(name, f"{split.documents:,}", *cells, f"{split.tokens:,}", str(len(split.shards)))
    console.print(table)
    _show_trial(console, manifest)


def _show_trial(console: Console, manifest: RunManifest) -> None:
    if manifest.trial is None:
        return
    table = _table(console, f"A trial over {manifest.trial['limit']} documents; the whole input would come to about", "", [""])
    for key, value in manifest.trial.items():
        if key.startswith("estimated_"):
            table.add_row(key.removeprefix("estimated_").replace("_", " "), f"{value:,}")
    console.print(table)


def show_outcomes(console: Console, manifest: RunManifest) -> None:
    """Documents and media items by source and outcome, reasons, stores and environments."""
    used = [o for o in OUTCOMES if any(o in s.documents or any(o in c for c in s.items.values()) for s in manifest.sources)]
    table = _table(
        console, "What became of every document and media item", "source", [*(o.replace("_", " ") for o in used), "in all"]
    )
    for source in manifest.sources:
        rows = {f"{source.name} ({source.format})": source.documents}
        rows |= {f"  {modality} items": counts for modality, counts in source.items.items()}
        for name, counts in rows.items():
            cells = [f"{counts[o]:,}" if o in counts else "" for o in used]
            table.add_row(name, *cells, f"{sum(counts.values()):,}")
    totals = {"all documents": manifest.documents} | {f"all {m} items": c for m, c in manifest.items.items()}
    table.add_section()
    for name, counts in totals.items():
        table.add_row(name, *(f"{counts.get(o, 0):,}" for o in used), f"{sum(counts.values()):,}", style="bold")
    console.print(table)
    reasons: dict[str, int] = {}
    for source in manifest.sources:
        for reason, count in source.reasons.items():
            reasons[reason] = reasons.get(reason, 0) + count
    if reasons:
        table = _table(console, "Reasons", "level / outcome / reason", ["count"])
        for reason in sorted(reasons, key=lambda r: (-reasons[r], r)):
            table.add_row(reason.replace("/", " / "), f"{reasons[reason]:,}")
        console.print(table)
    if manifest.stores:
        table = _table(console, "Picture stores", "store", ["entries", "failed", "pictures found", "damaged"])
        for store in manifest.stores:
            cells = [f"{n:,}" for n in (store.entries, store.failed, store.found, len(store.damage))]
            table.add_row(f"{store.name} ({store.kind})", *cells)
        console.print(table)
    if manifest.ignored:
        table = _table(console, "Files of the inputs that were not read", "why", ["files"])
        for why, count in manifest.ignored.items():
            table.add_row(why, f"{count:,}")
        console.print(table)
    if manifest.mixed is not None:
        table = _table(console, "Numeric environments (--allow-mixed)", "fingerprint", ["units"])
        for environment in manifest.mixed.environments:
            table.add_row(environment.fingerprint[:12], f"{environment.units:,}")
        console.print(table)
        for agreement in manifest.mixed.agreements:
            console.print(agreement.told())


def show_advice(console: Console, result: AdviseResult) -> None:
    """What sequence lengths come to, and why."""
    from tokkit.vocabulary import MODALITIES

    media = result.media
    columns = ["sequences", "full", "padding", "cut", "left out", "tokens left out"]
    kind = MODALITIES[media.modality] if media is not None else ""
    table = _table(console, "What sequence lengths come to", "seq_len", columns + ([f"{kind} spans + rest"] if media else []))
    for row in result.advice:
        cells = [f"{row.packs:,}", f"{100 * row.efficiency:.2f} %", f"{row.padding:,}", f"{row.cut_documents:,}"]
        cells += [f"{row.left_out:,}", f"{row.left_out_tokens:,}"]
        table.add_row(f"{row.seq_len:,}", *cells, *([f"{row.media} + {row.beside:,}"] if media else []))
    console.print(table)
    if media is not None:
        cut = "None is cut" if media.held == media.length else "Where none is cut"
        console.print(
            f"\n{100 * media.share:.0f} % of all tokens are in {media.count:,} {kind} spans of {media.length:,} tokens, with "
            f"{media.beside:,.0f} others to each. {cut}: the rest of a sequence that is full of them is text or padding."
        )
    short = [row for row in result.advice if row.too_long]
    if short:
        cannot = ", ".join(f"{row.seq_len:,} ({row.too_long:,} documents)" for row in short)
        console.print(
            f"Up to {result.longest_media:,} tokens of media must stay together. Too short for some: {cannot}; a plan of such "
            "a length needs --too-long leave-out, and leaves these documents out."
        )
    able = [row for row in result.advice if not row.too_long]
    best = max(able or result.advice, key=lambda row: (round(row.efficiency, 4), -row.seq_len))
    which = "these" if len(able) in (0, len(result.advice)) else "those that hold everything"
    console.print(f"The fullest of {which}: {best.seq_len:,}, {100 * best.efficiency:.2f} % full")


def show_export(console: Console, out: Path, record: Mapping[str, Any], *, written: bool) -> None:
    """What an export holds."""
    if "proof" in record:
        _show_tokenizer(console, out, record, written=written)
        return
    what = f"sequences of {record['pack']}" if record["pack"] else "documents"
    there = "" if written else " (already there)"
    table = _table(console, f"{out}: {what} for {record['to']}{there}", "split", ["sequences", "tokens", "files"])
    for name, split in record["splits"].items():
        table.add_row(name, f"{split['sequences']:,}", f"{split['tokens']:,}", f"{len(split['files']):,}")
    console.print(table)


def _show_tokenizer(console: Console, out: Path, record: Mapping[str, Any], *, written: bool) -> None:
    """What an exported tokenizer was proven on, and what a text model's embedding becomes."""
    proof, figures = record["proof"], record["embedding"]
    there = "" if written else " (already there)"
    table = _table(console, f"{out}: a Hugging Face tokenizer{there}", "embedding rows", ["first", "rows"])
    table.add_row("of the text model", "0", f"{figures['rows_of_the_text_model']:,}")
    for part in figures["new"]:
        table.add_row(part["what"], f"{part['first']:,}", f"{part['rows']:,}")
    table.add_row("in all", "", f"{figures['rows']:,}", style="bold")
    console.print(table)
    ties = f"; {proof['ties']:,} texts written otherwise, as good as tokkit's" if proof["ties"] else ""
    console.print(
        f"equal to tokkit's on {proof['texts']:,} texts ({proof['tokens']:,} tokens), "
        f"among them those of {proof['documents']:,} documents{ties}"
    )


def show_removal(console: Console, result: RemoveResult) -> None:
    """What was removed, and what became of every name."""
    removal = result.removal
    items = "".join(f", {count:,} {modality} items" for modality, count in removal.items.items())
    console.print(
        f"{removal.documents:,} documents removed ({removal.tokens:,} tokens{items}), asked for by {removal.names:,} names"
    )
    for outcome, count in result.elsewhere.items():
        console.print(f"{count:,} names are of documents that were not there anyway ({outcome.replace('_', ' ')})")
    if result.kept_originals:
        console.print(
            f"{result.kept_originals:,} names are of duplicates whose originals are still there: --originals removes these too",
            style="yellow",
        )
    if result.unmatched:
        console.print(
            f"{len(result.unmatched):,} names stand for no document: {result.out}/run/unmatched.txt lists them", style="yellow"
        )
    for name, plans in result.packs.items():
        console.print(f"packing plan {name} made anew: {sum(plan.packs for plan in plans.values()):,} sequences")
    console.print(f"\n{result.out} is the new version; `tokkit verify {result.out}` checks it")


def show_packs(console: Console, packs: Mapping[str, SplitResult]) -> None:
    """Packing efficiency by split, with the bound that no plan of these pieces can beat."""
    if not packs:
        return
    table = _table(
        console, "Packing", "split", ["seq_len", "rows", "at least", "efficiency", "at most", "documents cut", "left out"]
    )
    for name, pack in packs.items():
        places = max(pack.bound_martello_toth, 1) * pack.seq_len
        table.add_row(
            name,
            f"{pack.seq_len:,}",
            f"{pack.packs:,}",
            f"{pack.bound_martello_toth:,}",
            f"{100 * pack.efficiency:.2f} %",
            f"{100 * pack.tokens / places:.2f} %",
            f"{pack.cut_documents:,}",
            f"{sum(pack.left_out.values()):,}",
        )
    console.print(table)
    for what, one in (("source", "documents"), ("modality", "spans")):
        columns = {one: one, f"cut_{one}": "cut", f"left_out_{one}": "left out"}
        columns |= {"tokens": "tokens", "left_out_tokens": "tokens left out"}
        columns |= {"padding": "padding"} if what == "source" else {}
        rows = {
            f"{split} {name}": counts
            for split, pack in packs.items()
            for name, counts in (pack.by_source if what == "source" else pack.by_modality).items()
        }
        columns |= {"frame_cuts": "cuts in sounds"} if any(counts.get("frame_cuts") for counts in rows.values()) else {}
        if rows:
            table = _table(console, f"What it costs, by {what}", f"split, {what}", list(columns.values()))
            for name, counts in rows.items():
                table.add_row(name, *(f"{counts[key]:,}" for key in columns))
            console.print(table)


def show_summary(console: Console, summary: Mapping[str, Any]) -> None:
    """Throughput by stage of the run that has just ended."""
    if not summary.get("documents"):
        return
    media = "images and sounds" if summary["sounds"] else "images"
    amounts = {"read": "documents", "decode": media, "encode": media, "text": "documents", "write": "tokens"}
    table = _table(console, "Throughput by stage (per second of one worker)", "stage", ["seconds", "per second"])
    for stage, seconds in summary["stage_seconds"].items():
        rate = ""
        what = amounts.get(stage, "")
        amount = sum(summary.get(one, 0) for one in what.split(" and "))
        if seconds > 0 and amount:
            rate = f"{amount / seconds:,.0f} {what}"
        table.add_row(stage, f"{seconds:.2f}", rate)
    console.print(table)
    seconds = max(summary["seconds"], 1e-9)
    sounds = f"{summary['sounds']:,} sounds, " if summary["sounds"] else ""
    console.print(
        f"{summary['documents']:,} documents, {summary['images']:,} pictures, {sounds}{summary['tokens']:,} tokens in "
        f"{seconds:.1f} s with {summary['workers']} workers: {summary['tokens'] / seconds:,.0f} tokens/s, bound by "
        f"{summary['bound_by']}"
    )
    if "encoder" in summary:
        encoder = summary["encoder"]
        console.print(
            f"the encoder process was busy {encoder['busy']:.0%} of the time, its queue {encoder['queue_fill']:.0%} full; "
            f"the workers' encoding is the time that they waited for it"
        )
    if "dedup" in summary:
        dedup = summary["dedup"]
        found = ", ".join(f"{count:,} by {kind}" for kind, count in dedup["duplicates"].items())
        console.print(
            f"before that {dedup['documents']:,} documents and {dedup['images']:,} pictures were indexed in "
            f"{dedup['index_seconds']:.1f} s and grouped in {dedup['group_seconds']:.1f} s; duplicates: {found}"
        )
    if "estimated_hours" in summary:
        console.print(f"the whole input would take about {summary['estimated_hours']:.2f} hours on this machine")
