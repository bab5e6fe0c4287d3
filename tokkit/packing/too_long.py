"""Media that no sequence can hold whole, and that are not to be cut: pictures always, sounds where :mod:`tokkit.packing.cuts`
or the policy says so. Of a sound that may be cut a sequence must only hold a frame and a marker.

A document with such a picture is in no pack. Most often that is a sequence length chosen too small, and every document with a
picture would go: so it is an error to plan with such a length, unless one says that these documents are to be left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tokkit.errors import MediaTooLongError
from tokkit.packing.cuts import held_whole
from tokkit.packing.policy import SplitPolicy
from tokkit.shards.spans import SpanTable
from tokkit.vocabulary import MODALITIES


@dataclass(frozen=True)
class MediaTooLong:
    """The media of a split that are longer than a sequence, and the documents that they are in.

    Attributes:
        documents, of: how many have any, of how many.
        tokens: that these documents have in all.
        spans: how many media, by modality.
        longest: tokens of the longest, by modality, its markers included; of sounds that may be cut, of a frame with a marker.
        cuttable: whether some are sounds that another policy would cut.
    """

    documents: int
    of: int
    tokens: int
    spans: dict[str, int]
    longest: dict[str, int]
    cuttable: bool = False

    @property
    def needs(self) -> int:
        """The length of sequence that holds all of them."""
        return max(self.longest.values())


def media_too_long(
    lengths: npt.NDArray[np.int64], spans: SpanTable, seq_len: int, policy: SplitPolicy = SplitPolicy.OVERLONG
) -> MediaTooLong | None:
    """The media of which more than ``seq_len`` tokens must stay together; None where there are none.

    Args:
        lengths: int64 [D], tokens of each document.
        spans: of these documents.
        policy: which documents are cut.
    """
    held = held_whole(spans, policy)
    found = np.flatnonzero(held > seq_len)
    if not found.size:
        return None
    documents = np.unique(np.searchsorted(spans.offsets, found, side="right") - 1)
    by_modality = {MODALITIES[n]: held[found][spans.modality[found] == n] for n in np.unique(spans.modality[found])}
    return MediaTooLong(
        documents=len(documents),
        of=len(lengths),
        tokens=int(lengths[documents].sum()),
        spans={name: len(found) for name, found in by_modality.items()},
        longest={name: int(found.max()) for name, found in by_modality.items()},
        cuttable=bool((held_whole(spans, SplitPolicy.OVERLONG)[found] < held[found]).any()),
    )


def refusal(found: Mapping[str, MediaTooLong], seq_len: int, align: int = 1) -> MediaTooLongError:
    """The error that says what is too long, and the two ways out.

    Args:
        found: by split; of one at least.
    """
    told = []
    for split, media in found.items():
        kinds = ", ".join(
            f"{number:,} {modality} span{'s' * (number > 1)} (the longest of {media.longest[modality]:,} tokens)"
            for modality, number in media.spans.items()
        )
        told.append(f"{media.documents:,} of the {media.of:,} documents of split {split} have {kinds}")
    needs = -(-max(media.needs for media in found.values()) // align) * align
    tokens = sum(media.tokens for media in found.values())
    cut = "let sounds be cut with --split overlong, or " if any(media.cuttable for media in found.values()) else ""
    return MediaTooLongError(
        f"some media are longer than a sequence of {seq_len:,} tokens, and cannot be cut: {'; '.join(told)}",
        needs,
        f"Take --seq-len {needs} or more, or {cut}leave these documents ({tokens:,} tokens) out with --too-long leave-out",
    )
