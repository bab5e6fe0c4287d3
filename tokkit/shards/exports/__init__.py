"""Token shards in the formats that other trainers and loaders read.

An export is made from *parts* (:class:`Part`): token files that exist already, one a shard of documents, or one a block of
packed rows. A format writes each part under the part's name into one folder a split, and may add files that tell of all.

===========  ============================================================  ====================================================
format       files                                                         read by
===========  ============================================================  ====================================================
megatron     ``NAME.bin``, ``NAME.idx``                                    Megatron-LM, NeMo: ``IndexedDataset``, ``GPTDataset``
ds           ``NAME.ds``, ``.ds.index``, ``.ds.metadata``, ``.ds.loss``    datatrove, nanotron: ``DatatroveFileDataset``
olmo         ``NAME.npy`` (headerless), ``NAME.csv.gz``                    OLMo-core, dolma
parquet      ``NAME.parquet``                                              Hugging Face ``datasets``, pandas, anything
===========  ============================================================  ====================================================

In ``megatron``, ``ds`` and ``olmo`` the tokens are the native ``.bin`` byte for byte: a hard link where the disk allows it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tokkit.shards.exports.part import Part
from tokkit.shards.exports.payload import write_ds, write_megatron, write_olmo
from tokkit.shards.exports.table import write_parquet

FORMATS: dict[str, Callable[[Part, Path], list[Path]]] = {
    "megatron": write_megatron,
    "ds": write_ds,
    "olmo": write_olmo,
    "parquet": write_parquet,
}
"""By name, what writes a part into a folder and returns the files."""

__all__ = ["FORMATS", "Part"]
