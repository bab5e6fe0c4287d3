"""Token shards in the formats that other trainers and loaders read.

An export is made from *parts* (:class:`Part`): token files that exist already, one a shard of documents, or one a block of
packed rows. A format writes each part under the part's name into one folder a split, and may add files that tell of all.

===========  ============================================================  ====================================================
format       files                                                         read by
===========  ============================================================  ====================================================
megatron     ``NAME.bin``, ``NAME.idx``                                    Megatron-LM, NeMo: ``IndexedDataset``, ``GPTDataset``
ds           ``NAME.ds``, ``.ds.index``, ``.ds.metadata``, ``.ds.loss``    datatrove, nanotron: ``DatatroveFileDataset``
olmo         ``NAME.npy`` (headerless), ``NAME.csv.gz``                    OLMo-core, dolma
mds          ``shard.NNNNN.mds``, ``index.json``                           mosaicml-streaming
parquet      ``NAME.parquet``                                              Hugging Face ``datasets``, pandas, anything
arrow        ``NAME.arrow`` (IPC file)                                     Hugging Face ``datasets``, pyarrow, polars
datasets     ``NAME.arrow`` (IPC stream), ``state.json``                   ``datasets.load_from_disk``, ``Dataset.from_file``
webdataset   ``NAME.tar``                                                  webdataset
===========  ============================================================  ====================================================

In ``megatron``, ``ds`` and ``olmo`` the tokens are the native ``.bin`` byte for byte: a hard link where the disk allows it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from tokkit.shards.exports.part import Part
from tokkit.shards.exports.payload import write_ds, write_megatron, write_olmo
from tokkit.shards.exports.samples import write_mds, write_webdataset
from tokkit.shards.exports.saved import write_saved
from tokkit.shards.exports.table import write_arrow, write_parquet

DATASETS = "datasets"

Writer = Callable[[Iterator[Part], Path], Iterator[tuple[Part | None, list[Path]]]]


def _one_by_one(
    write: Callable[[Part, Path], list[Path]], parts: Iterator[Part], folder: Path
) -> Iterator[tuple[Part | None, list[Path]]]:
    for part in parts:
        yield part, write(part, folder)


FORMATS: dict[str, Writer] = {
    "megatron": partial(_one_by_one, write_megatron),
    "ds": partial(_one_by_one, write_ds),
    "olmo": partial(_one_by_one, write_olmo),
    "mds": write_mds,
    "parquet": partial(_one_by_one, write_parquet),
    "arrow": partial(_one_by_one, write_arrow),
    DATASETS: write_saved,
    "webdataset": partial(_one_by_one, write_webdataset),
}
"""By name, what writes parts into a folder: it yields each part with the files that are finished by then, and last
None with the others."""

__all__ = ["DATASETS", "FORMATS", "Part"]
