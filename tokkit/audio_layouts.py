"""The codes of a sound as one row of ids, and back: K codebooks of T frames each in one of three orders.

* ``flat``: frame by frame, all codebooks of a frame in turn (AnyGPT's music and audio).
* ``book_major``: codebook by codebook, all frames of a codebook in turn (coarse to fine, as AudioLM's stages).
* ``delay``: step by step, all codebooks in turn, codebook k ``delays[k]`` steps late, so that at each step a model has what
  finer codes build upon. MusicGen delays each codebook by one step more than the one before it; Moshi the first by none and all
  others by one. Places before a codebook's first frame and behind its last hold that codebook's own pad id
  (:data:`tokkit.vocabulary.AUDIO_PAD`): K x (T + the longest delay) ids.

All three are exact: what was written comes back, and what cannot have been written is refused at its first wrong place. Two
things that lose something are apart from them, and say what they lose: :func:`first_books` and :func:`collapse`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from tokkit.vocabulary import AUDIO_PAD, Ids, UnifiedVocabulary

AudioLayout = Literal["flat", "book_major", "delay"]
Ints = npt.NDArray[np.int64]


class MisplacedCodeError(Exception):
    """Ids that are no sound: the place of the first one that cannot be right, and what was expected there."""

    def __init__(self, place: int, expected: str) -> None:
        self.place, self.expected = place, expected
        super().__init__(f"{place}: expected {expected}")


def longest_delay(layout: AudioLayout, delays: Sequence[int], books: int) -> int:
    """By how many steps a sound of so many codebooks is longer than its frames."""
    return max(delay_of(delays, books)) if layout == "delay" else 0


def delay_of(delays: Sequence[int], books: int) -> tuple[int, ...]:
    """The delay of each of the first ``books`` codebooks; those that ``delays`` does not name are as MusicGen's."""
    return tuple(delays[:books]) if delays else tuple(range(books))


def tokens_of(layout: AudioLayout, delays: Sequence[int], books: int, frames: int) -> int:
    """How many ids a sound has, without its markers."""
    return books * (frames + longest_delay(layout, delays, books))


def places(layout: AudioLayout, delays: Sequence[int], books: int, steps: int) -> tuple[Ints, Ints]:
    """What stands at each of ``books * steps`` places: the codebook, and the frame, or -1 for a pad; int64 each.

    Args:
        steps: frames, and with ``delay`` the longest delay more.
    """
    at = np.arange(books * steps)
    if layout == "book_major":
        return at // steps, at % steps
    step, book = at // books, at % books
    if layout == "flat":
        return book, step
    late = np.array(delay_of(delays, books))
    frame = step - late[book]
    return book, np.where((frame >= 0) & (frame < steps - late.max()), frame, -1)


def write(codes: Ids, vocabulary: UnifiedVocabulary, layout: AudioLayout, delays: Sequence[int]) -> Ids:
    """Codes int32 [K, T] as ids int32 [n].

    Raises:
        VocabularyError: a code outside of its codebook, or no codebook or pad of that number.
    """
    books, frames = codes.shape
    book, frame = places(layout, delays, books, frames + longest_delay(layout, delays, books))
    ids = np.stack([vocabulary.encode("audio", codes[k], k) for k in range(books)])
    found = ids[book, frame]
    if layout == "delay":
        pad = frame < 0
        found[pad] = vocabulary.encode(AUDIO_PAD, book[pad])
    return found


def read(ids: Ints, vocabulary: UnifiedVocabulary, layout: AudioLayout, delays: Sequence[int]) -> Ids:
    """Ids [n] of codes and pads as codes int32 [K, T].

    Raises:
        MisplacedCodeError: :func:`write` cannot have made them.
    """
    book, pad = _owners(ids, vocabulary)
    if book[0] != 0:
        raise MisplacedCodeError(0, "audio codebook 0")
    books = _books(book, pad, layout)
    if layout == "delay" and delays and books > len(delays):
        raise MisplacedCodeError(len(delays), "audio codebook 0")
    steps = -(-len(ids) // books)
    if layout == "book_major":  # the first codebook says how many frames there are
        others = np.flatnonzero((book != 0) | pad)
        steps = int(others[0]) if others.size else len(ids)
    frames = steps - longest_delay(layout, delays, books)
    if frames < 1:
        raise MisplacedCodeError(len(ids), "a frame of every codebook")
    wanted_book, frame = places(layout, delays, books, steps)
    length = min(len(ids), len(wanted_book))
    wrong = np.flatnonzero((book[:length] != wanted_book[:length]) | (pad[:length] != (frame[:length] < 0)))
    place = int(wrong[0]) if wrong.size else length
    if place < max(len(ids), len(wanted_book)):
        if place >= len(wanted_book):
            raise MisplacedCodeError(place, "no further audio code")
        what = "pad of audio codebook" if frame[place] < 0 else "audio codebook"
        raise MisplacedCodeError(place, f"{what} {wanted_book[place]}")
    codes = np.empty((books, frames), dtype=np.int32)
    codes[wanted_book[~pad], frame[~pad]] = vocabulary.codes(ids[~pad])
    return codes


def read_steps(
    ids: Ints, vocabulary: UnifiedVocabulary, layout: AudioLayout, delays: Sequence[int], *, begins: bool, ends: bool
) -> Ids:
    """Ids [n] of some of a sound's frames, or with ``delay`` steps, as int32 [K, S], -1 for pads; not of ``book_major``.

    Args:
        begins, ends: whether they have its first and its last step.

    Raises:
        MisplacedCodeError: they are no stretch of a sound from one frame's begin to another's end.
    """
    book, pad = _owners(ids, vocabulary)
    books = _books(book, pad, layout)
    wrong = np.flatnonzero(book != np.arange(len(ids)) % books)
    if wrong.size or len(ids) % books:
        place = int(wrong[0]) if wrong.size else len(ids)
        raise MisplacedCodeError(place, f"audio codebook {place % books}")
    if layout == "delay" and delays and books > len(delays):
        raise MisplacedCodeError(len(delays), "audio codebook 0")
    place = _misplaced_pad(pad.reshape(-1, books), np.array(delay_of(delays, books)), begins, ends) if layout == "delay" else -1
    if place >= 0:
        what = "audio codebook" if pad[place] else "pad of audio codebook"
        raise MisplacedCodeError(place, f"{what} {place % books}")
    codes = np.where(pad, -1, vocabulary.codes(ids)).astype(np.int32)
    return np.ascontiguousarray(codes.reshape(-1, books).T)


def _misplaced_pad(pad: npt.NDArray[np.bool_], late: Ints, begins: bool, ends: bool) -> int:
    """The first place where ``pad`` [S, K] is that of no S steps in a row of any sound with these delays; -1 where it is."""
    steps, longest = len(pad), int(late.max())
    step, place = np.arange(steps)[:, None], 0
    for before in range(1 if begins else longest + 1):  # steps of the sound before these; the most stands for all more
        for behind in range(1 if ends else longest + 1):
            if before < longest and behind < longest and before + steps + behind <= longest:
                continue  # so few steps have no frame
            wanted = (before + step < late) | (steps - 1 - step + behind < longest - late)
            wrong = np.flatnonzero(wanted != pad)
            if not wrong.size:
                return -1
            place = max(place, int(wrong[0]))
    return place


def _owners(ids: Ints, vocabulary: UnifiedVocabulary) -> tuple[Ints, npt.NDArray[np.bool_]]:
    """Of each id the codebook, and whether it is that one's pad."""
    owner = vocabulary.owners(ids)
    book = np.full(len(ids), -1, dtype=np.int64)
    for k, block in enumerate(vocabulary.codebooks("audio")):
        book[owner == vocabulary.blocks.index(block)] = k
    pad = book < 0
    book[pad] = vocabulary.codes(ids[pad])
    return book, pad


def _books(book: Ints, pad: npt.NDArray[np.bool_], layout: AudioLayout) -> int:
    """How many codebooks a sound has: in the first frame or step they come in turn until the first one returns."""
    if layout == "book_major":
        return max(1, int(book[~pad].max(initial=0)) + 1)
    again = np.flatnonzero(book[1:] == 0)
    return int(again[0]) + 1 if again.size else len(book)


# ---- what loses something


def first_books(codes: Ids, count: int) -> Ids:
    """The ``count`` coarsest of the codebooks, int32 [count, T]: the same sound at a lower bandwidth; the others are lost.

    Raises:
        ValueError: there are not so many.
    """
    if not 1 <= count <= len(codes):
        raise ValueError(f"{count} of {len(codes)} codebooks")
    return codes[:count]


@dataclass(frozen=True, eq=False)
class Collapsed:
    """A sound whose equal frames in a row are one.

    Attributes:
        codes: int32 [K, R]: no frame is equal to the one before it.
        lengths: int64 [R], how many frames each stands for. Where they are not kept, what is lost is how long each sounded.
    """

    codes: Ids
    lengths: Ints

    @property
    def lost(self) -> int:
        """Frames that are in ``lengths`` alone."""
        return int(self.lengths.sum()) - len(self.lengths)


def collapse(codes: Ids) -> Collapsed:
    """Codes [K, T] with equal frames in a row as one (HuBERT units as SpeechGPT writes them)."""
    changes = np.flatnonzero((codes[:, 1:] != codes[:, :-1]).any(axis=0)) + 1
    starts = np.concatenate([[0], changes])[: codes.shape[1]]
    return Collapsed(np.ascontiguousarray(codes[:, starts]), np.diff(np.append(starts, codes.shape[1])))


def expand(collapsed: Collapsed) -> Ids:
    """The codes [K, T] that were collapsed."""
    return np.repeat(collapsed.codes, collapsed.lengths, axis=1)
