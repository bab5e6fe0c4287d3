"""What an export is made from: a token file, and where sequences begin in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tokkit.vocabulary import Ids


@dataclass(frozen=True, eq=False)
class Part:
    """Sequences that stand one after another in a token file: documents, or packed rows.

    Attributes:
        name: of the files that it becomes, without suffix.
        path: the token file: ids of ``dtype``, little endian, and nothing else.
        dtype: uint16 or int32.
        lengths: int64 [D], tokens of each sequence.
        seq_len: of packed rows, the length that all of them have; 0 of documents.
        tokenizer: what the ids are of, for a person.
        table: the document table's columns id, source and locator of these sequences; None of packed rows.
        fields: of a range of sequences, further columns for formats that are tables: arrays with a value for each token.
        borders: of packed rows, a list for each: where its segments begin, and where the last one ends (int32).
        loss: bool [T], whether a token is to be predicted from those before it; None where all are.
    """

    name: str
    path: Path
    dtype: np.dtype
    lengths: npt.NDArray[np.int64]
    tokenizer: str
    table: Callable[[], pa.Table] | None = None
    seq_len: int = 0
    fields: Callable[[int, int], dict[str, npt.NDArray[np.generic]]] | None = None
    borders: Callable[[], pa.ListArray] | None = None
    loss: Callable[[], npt.NDArray[np.bool_] | None] = lambda: None

    @property
    def tokens(self) -> Ids:
        """The token file as a read-only memory map."""
        from tokkit.shards.native import map_tokens

        return map_tokens(self.path, self.dtype)

    @property
    def ends(self) -> npt.NDArray[np.int64]:
        """int64 [D], where each sequence ends, in tokens."""
        return np.cumsum(self.lengths)
