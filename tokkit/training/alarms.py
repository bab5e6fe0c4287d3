"""What goes wrong in tokenizer training, noticed from the log's own figures and said in words with what to do.

:class:`Watch` is shown each row of ``metrics.jsonl`` and answers with alarms. It knows nothing but rows, so a resumed run that
shows it the rows again is where it was. An alarm sounds once, and again only after what it says was no longer so; a loss that
jumps about is no longer rising only once it has come down to near where it was.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean, median

Row = Mapping[str, float | None]

_BOOK = re.compile(r"perplexity_book_\d+")

# Rows in a line that something must be so before it is said: a single row is noise.
PATIENCE = 3

COLLAPSED = 1 / 3  # of the highest perplexity of the settled run
BARELY_USED = 0.05  # of the codes, where the window has room for all of them
SMALL = 0.1  # perplexity as a share of the codes, above which a fall is no collapse
FEW = 0.02  # perplexity as a share of the codes
SETTLED = 0.1  # of the run, before which nothing of codebooks is said
WINNING = 0.1  # of the loss of a discriminator that knows nothing
EXPLODED = 20.0  # times the usual gradient
RISEN = 3.0  # times the lowest loss
FALLEN = 1.5  # times the lowest loss: where one that had risen has come down again
WAITING = 0.5  # of the time

# What rows have where the output is pulled at by a discriminator: trainers of pictures, of sounds.
ADVERSARIAL = ("gan_weight", "adversarial_loss")


@dataclass(frozen=True, slots=True)
class Alarm:
    """Something to look at.

    Attributes:
        kind: a slug.
        step: where it was noticed.
        message: what is wrong, with figures.
        advice: what to do about it.
    """

    kind: str
    step: int
    message: str
    advice: str

    def __str__(self) -> str:
        return f"ALARM {self.kind} at step {self.step}: {self.message} {self.advice}"


@dataclass(frozen=True, slots=True)
class Measure:
    """What reconstruction is judged by, in training and on held-out items; differences are dB, or shares of the best.

    Attributes:
        trained, held_out: figures of a row, and their ``names`` for people.
        lower: lower is better, and differences are shares; else decibels.
        lost: how far behind what was reached without the discriminator is too far; ``usual`` says what is not.
        overfitted: how far below its best the held-out figure must be, while that of the training is no further than
            ``as_good`` from its own.
    """

    trained: str
    held_out: str
    names: tuple[str, str]
    lower: bool
    lost: float
    usual: str
    overfitted: float
    as_good: float

    def behind(self, now: float, others: Sequence[float]) -> float:
        """How much worse a figure is than the best of others."""
        return now / max(min(others), 1e-9) - 1 if self.lower else max(others) - now

    def told(self, value: float) -> str:
        """A figure with its unit."""
        return f"{value:.3f}" if self.lower else f"{value:.1f} dB"

    def told_behind(self, difference: float) -> str:
        """How much worse it is."""
        return f"{100 * difference:.0f} % above" if self.lower else f"{difference:.1f} dB below"


PSNR = Measure("psnr", "val_psnr", ("psnr", "psnr"), False, 2.0, "up to 1 dB of psnr is usually lost", 1.0, 0.5)
# Not SI-SDR: it minds phase, so it says little of a codec of few codes, and falls under any discriminator.
MEL = Measure(
    "mel_loss",
    "val_mel_distance",
    ("mel loss", "mel distance"),
    True,
    0.25,
    "the mel distance may rise by some percent",
    0.05,
    0.1,
)


@dataclass
class Watch:
    """Looks at one row after another.

    Attributes:
        total_codes: codes that can occur; usage says something only where several for each of them were counted.
        learned_table: whether there is a codebook that could be left unused (VQ), rather than a fixed grid (FSQ).
        idle_loss: loss of a discriminator that knows nothing: 1 with hinge, log 2 with cross entropy.
        measure: what reconstruction is judged by.
        items: what is trained on, for people and for the kind of an alarm (``waiting-for-sounds``).
        advice: by kind, what to do about it where that is not what trainers of pictures do.
    """

    total_codes: int
    learned_table: bool = True
    idle_loss: float = 1.0
    measure: Measure = PSNR
    items: str = "pictures"
    advice: Mapping[str, str] = field(default_factory=dict)
    _sounding: set[str] = field(default_factory=set)
    _streak: dict[str, int] = field(default_factory=dict)
    _rows: list[Row] = field(default_factory=list)
    _comparable: int = 0  # the first row since quantization began; held-out figures are of quantized items before it too
    _peaks: dict[str, float] = field(default_factory=dict)  # of the perplexities, once the run has settled

    def look(self, row: Row, done: float) -> list[Alarm]:
        """Show it the next row, with so much of the run over; returns what newly sounds."""
        if self._rows and self._rows[-1].get("codes_counted") == 0 and row.get("codes_counted"):
            self._comparable = len(self._rows) + 1  # training figures before, and in part in this row, are of another kind
        self._rows.append(row)
        found = [
            self._collapse(row, done),
            self._overpowering(row),
            self._discriminator(row),
            self._gradients(row),
            self._loss(row),
            self._waiting(row),
            self._overfitting(row),
        ]
        return [alarm for alarm in found if alarm is not None]

    def _collapse(self, row: Row, done: float) -> Alarm | None:
        used = row.get("codebook_usage")
        books = {name: v for name, v in row.items() if _BOOK.fullmatch(name) and v is not None}
        one = row.get("perplexity")
        if not books and one is not None:
            books = {"": one}
        if used is None or not books or done < SETTLED:
            return None  # tables begin as features of the first batch: varied at first, then they come together
        for name, now in books.items():
            self._peaks[name] = max(self._peaks.get(name, 0.0), now)
        roomy = (row.get("codes_counted") or 0) >= 4 * self.total_codes
        fallen = [n for n, now in books.items() if now < COLLAPSED * self._peaks[n] and now < SMALL * self.total_codes]
        barely = [n for n, now in books.items() if used < BARELY_USED or now < FEW * self.total_codes]
        found = fallen or (barely if self.learned_table and roomy else [])
        name = min(found or books, key=lambda n: books[n])
        which = f"Codebook {name.rpartition('_')[2]}" if name else "The codebook"
        how = f"its highest was {self._peaks[name]:.0f}" if fallen else f"{100 * used:.1f} % of them occur"
        return self._sound(
            "codebook-collapsing",
            bool(found),
            row,
            f"{which} is collapsing: perplexity is {books[name]:.1f} of {self.total_codes:,} codes, {how}.",
            "Lower --lr or lengthen --warmup; for vq keep quantizer.normalize on with a codebook_dim of 8, and "
            "quantizer.dead_code_share above 0 (revives codes), try quantizer.entropy_weight=0.1; or take an fsq preset, "
            "which has nothing to collapse.",
        )

    def _overpowering(self, row: Row) -> Alarm | None:
        if not _adversarial(row):
            return None
        measure = self.measure
        name, now = f"held-out {measure.names[1]}", row.get(measure.held_out)
        before = self._alone(measure.held_out)
        if now is None or not before:
            name, now = measure.names[0], row.get(measure.trained)
            before = self._alone(measure.trained, self._comparable)
        if now is None or not before:
            return None
        lost = measure.behind(now, before)
        return self._sound(
            "gan-overpowering",
            lost > measure.lost,
            row,
            f"The adversarial loss overpowers reconstruction: {name} is {measure.told(now)}, {measure.told_behind(lost)} "
            f"what was reached without it ({measure.usual}).",
            "Lower --gan-weight (0.02 to 0.1 is usual), start it later (--gan-start), or raise --lecam. With --gan-adaptive "
            "the weight may have blown up: look at gan_weight in metrics.jsonl.",
        )

    def _discriminator(self, row: Row) -> Alarm | None:
        loss, real, fake = row.get("gan_loss"), row.get("real_logits"), row.get("fake_logits")
        if loss is None or real is None or fake is None:
            return None
        return self._sound(
            "discriminator-winning",
            loss < WINNING * self.idle_loss,
            row,
            f"The discriminator tells every reconstruction from its original (loss {loss:.3f}, logits {real:.1f} for real and "
            f"{fake:.1f} for reconstructed): its gradients say little now.",
            "Raise --lecam (0.01 to 0.05), lower --discriminator-lr, or take a weaker one (--gan patch).",
            patience=PATIENCE,
        )

    def _gradients(self, row: Row) -> Alarm | None:
        norms = self._series("grad_norm")
        usual = median(norms[-50:-1]) if len(norms) > 10 else None
        return self._sound(
            "gradients-exploding",
            usual is not None and norms[-1] > EXPLODED * max(usual, 1e-6),
            row,
            f"Gradients are {norms[-1] / max(usual or 1, 1e-6):.0f} times as long as usual ({norms[-1]:.3g})." if norms else "",
            "They are clipped; if it stays so, lower --lr or lengthen --warmup.",
        )

    def _loss(self, row: Row) -> Alarm | None:
        losses = self._alone("loss", self._comparable)
        if _adversarial(row) or len(losses) < 10:
            return None
        lowest = min(mean(losses[i : i + PATIENCE]) for i in range(len(losses) - PATIENCE + 1))
        now = mean(losses[-PATIENCE:])
        return self._sound(
            "loss-rising",
            lowest > 0 and now > RISEN * lowest,
            row,
            f"The loss is rising: {now:.4g} where it was {lowest:.4g} before.",
            "Lower --lr; stop and go on from an earlier checkpoint where it does not come down by itself.",
            over=now <= FALLEN * lowest,
        )

    def _waiting(self, row: Row) -> Alarm | None:
        share = row.get("waiting")
        return self._sound(
            f"waiting-for-{self.items}",
            share is not None and share > WAITING,
            row,
            f"{100 * (share or 0):.0f} % of the time goes into waiting for the next batch.",
            "Raise --workers (processes that decode and crop), or store pictures near to the size they are trained at.",
            patience=PATIENCE,
        )

    def _overfitting(self, row: Row) -> Alarm | None:
        measure = self.measure
        held_out = self._series(measure.held_out)
        trained = self._series(measure.trained, self._comparable)
        now = row.get(measure.held_out)
        if now is None or not trained or _adversarial(row):
            return None
        behind = measure.behind(now, held_out)
        whose = "that" if measure.names[0] == measure.names[1] else f"the {measure.names[0]}"
        return self._sound(
            "overfitting",
            behind > measure.overfitted and measure.behind(trained[-1], trained) <= measure.as_good,
            row,
            f"Held-out {measure.names[1]} is {measure.told(now)}, {measure.told_behind(behind)} its best, while {whose} of the "
            f"training is as good as ever: the training {self.items} are being learned by heart.",
            "Use more pictures, or stop here: best/ holds the tokenizer of the best held-out figure (unless --best-by last).",
        )

    def diverged(self, step: int, message: str) -> Alarm:
        """The alarm of a loss that is no number: it ends a run."""
        advice = (
            "The newest checkpoint is from before that: --resume goes on from it, but comes to the same place with the same "
            "options; begin anew with a lower --lr, a longer --warmup or --precision float32."
        )
        return Alarm("not-a-number", step, message + ".", self.advice.get("not-a-number", advice))

    def _series(self, name: str, since: int = 0) -> list[float]:
        return [v for r in self._rows[since:] if (v := r.get(name)) is not None]

    def _alone(self, name: str, since: int = 0) -> list[float]:
        """A figure's values without an adversarial loss."""
        return [v for r in self._rows[since:] if not _adversarial(r) and (v := r.get(name)) is not None]

    def _sound(
        self, kind: str, so: bool, row: Row, message: str, advice: str, patience: int = 1, over: bool = True
    ) -> Alarm | None:
        """The alarm where it is so and was not before; where it is not so, it may sound again if it is ``over``."""
        self._streak[kind] = self._streak.get(kind, 0) + 1 if so else 0
        if not so:
            if over:
                self._sounding.discard(kind)
            return None
        if self._streak[kind] < patience or kind in self._sounding:
            return None
        self._sounding.add(kind)
        return Alarm(kind, int(row["step"] or 0), message, self.advice.get(kind, advice))


def _adversarial(row: Row) -> bool:
    return any(row.get(name) is not None for name in ADVERSARIAL)
