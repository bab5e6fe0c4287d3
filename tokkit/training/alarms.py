"""What goes wrong in tokenizer training, noticed from the log's own figures and said in words with what to do.

:class:`Watch` is shown each row of ``metrics.jsonl`` and answers with alarms. It knows nothing but rows, so a resumed run that
shows it the rows again is where it was. An alarm sounds once, and again only after what it says was no longer so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import mean, median

Row = Mapping[str, float | None]

# Rows in a line that something must be so before it is said: a single row is noise.
PATIENCE = 3

COLLAPSED = 1 / 3  # of the highest perplexity of the settled run
BARELY_USED = 0.05  # of the codes, where the window has room for all of them
SMALL = 0.1  # perplexity as a share of the codes, above which a fall is no collapse
FEW = 0.02  # perplexity as a share of the codes
SETTLED = 0.1  # of the run, before which nothing of codebooks is said
PSNR_LOST = 2.0  # dB against what was reached without the discriminator
WINNING = 0.1  # of the loss of a discriminator that knows nothing
EXPLODED = 20.0  # times the usual gradient
RISEN = 3.0  # times the lowest loss
WAITING = 0.5  # of the time
OVERFITTED = 1.0  # dB below the best held-out figure, while the training figure is at its best


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


@dataclass
class Watch:
    """Looks at one row after another.

    Attributes:
        total_codes: codes that can occur; usage says something only where several for each of them were counted.
        learned_table: whether there is a codebook that could be left unused (VQ), rather than a fixed grid (FSQ).
        idle_loss: loss of a discriminator that knows nothing: 1 with hinge, log 2 with cross entropy.
        quality: the row's figure that reconstruction is judged by, higher is better, in dB.
        advice: by kind, what to do about it where that is not what trainers of pictures do.
    """

    total_codes: int
    learned_table: bool = True
    idle_loss: float = 1.0
    quality: str = "psnr"
    advice: Mapping[str, str] = field(default_factory=dict)
    _sounding: set[str] = field(default_factory=set)
    _streak: dict[str, int] = field(default_factory=dict)
    _rows: list[Row] = field(default_factory=list)
    _peak: float = 0.0  # of the perplexity, once the run has settled

    def look(self, row: Row, done: float) -> list[Alarm]:
        """Show it the next row, with so much of the run over; returns what newly sounds."""
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
        now, used = row.get("perplexity"), row.get("codebook_usage")
        if now is None or used is None or done < SETTLED:
            return None  # tables begin as features of the first batch: varied at first, then they come together
        self._peak = max(self._peak, now)
        roomy = (row.get("codes_counted") or 0) >= 4 * self.total_codes
        fallen = now < COLLAPSED * self._peak and now < SMALL * self.total_codes
        barely = self.learned_table and roomy and (used < BARELY_USED or now < FEW * self.total_codes)
        how = f"its highest was {self._peak:.0f}" if fallen else f"{100 * used:.1f} % of them occur"
        return self._sound(
            "codebook-collapsing",
            fallen or barely,
            row,
            f"The codebook is collapsing: perplexity is {now:.1f} of {self.total_codes:,} codes, {how}.",
            "Lower --lr or lengthen --warmup; for vq keep quantizer.normalize on with a codebook_dim of 8, and "
            "quantizer.dead_code_share above 0 (revives codes), try quantizer.entropy_weight=0.1; or take an fsq preset, "
            "which has nothing to collapse.",
        )

    def _overpowering(self, row: Row) -> Alarm | None:
        if row.get("gan_weight") is None:
            return None
        name = f"val_{self.quality}"
        alone = [r for r in self._rows if r.get("gan_weight") is None]
        compared = name if any(r.get(name) is not None for r in alone) and row.get(name) is not None else self.quality
        before = [v for r in alone if (v := r.get(compared)) is not None]
        now = row.get(compared)
        if now is None or not before:
            return None
        lost = max(before) - now
        return self._sound(
            "gan-overpowering",
            lost > PSNR_LOST,
            row,
            f"The adversarial loss overpowers reconstruction: {compared} is {now:.1f} dB, {lost:.1f} dB below "
            "what was reached without it (up to 1 dB is usual).",
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
        losses = [v for r in self._rows if r.get("gan_weight") is None and (v := r.get("loss")) is not None]
        if row.get("gan_weight") is not None or len(losses) < 10:
            return None
        lowest = min(mean(losses[i : i + PATIENCE]) for i in range(len(losses) - PATIENCE + 1))
        now = mean(losses[-PATIENCE:])
        return self._sound(
            "loss-rising",
            lowest > 0 and now > RISEN * lowest,
            row,
            f"The loss is rising: {now:.4g} where it was {lowest:.4g} before.",
            "Lower --lr; stop and go on from an earlier checkpoint where it does not come down by itself.",
        )

    def _waiting(self, row: Row) -> Alarm | None:
        share = row.get("waiting")
        return self._sound(
            "waiting-for-pictures",
            share is not None and share > WAITING,
            row,
            f"{100 * (share or 0):.0f} % of the time goes into waiting for the next batch.",
            "Raise --workers (processes that decode and crop), or store pictures near to the size they are trained at.",
            patience=PATIENCE,
        )

    def _overfitting(self, row: Row) -> Alarm | None:
        name = f"val_{self.quality}"
        now, trained = row.get(name), self._series(self.quality)
        if now is None or row.get("gan_weight") is not None:
            return None
        best = max(self._series(name))
        return self._sound(
            "overfitting",
            now < best - OVERFITTED and trained[-1] >= max(trained) - 0.5,
            row,
            f"Held-out {self.quality} is {now:.1f} dB, {best - now:.1f} dB below its best, while that of the training is as "
            "good as ever: the training pictures are being learned by heart.",
            "Use more pictures, or stop here: best/ holds the tokenizer of the best held-out figure (unless --best-by last).",
        )

    def _series(self, name: str) -> list[float]:
        return [v for r in self._rows if (v := r.get(name)) is not None]

    def _sound(self, kind: str, so: bool, row: Row, message: str, advice: str, patience: int = 1) -> Alarm | None:
        self._streak[kind] = self._streak.get(kind, 0) + 1 if so else 0
        if not so:
            self._sounding.discard(kind)
            return None
        if self._streak[kind] < patience or kind in self._sounding:
            return None
        self._sounding.add(kind)
        return Alarm(kind, int(row["step"] or 0), message, self.advice.get(kind, advice))


def diverged(step: int, message: str) -> Alarm:
    """The alarm of a loss that is no number: it ends a run."""
    return Alarm(
        "not-a-number",
        step,
        message + ".",
        "The newest checkpoint is from before that: --resume goes on from it, but comes to the same place with the same "
        "options; begin anew with a lower --lr, a longer --warmup or --precision float32.",
    )
