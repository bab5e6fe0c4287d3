"""What can be said of a packing plan before the run that it comes at the end of: whether pictures fit into its sequences.

Where all pictures have one size, or one of a few, it is known beforehand how many tokens they have. A sequence length that not
even the smallest fits into is refused then, not after hours of encoding. What is known only of the documents themselves
(sounds, pictures of their own size) is looked at where the plan is made (:mod:`tokkit.packing.too_long`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tokkit.errors import MediaTooLongError
from tokkit.interleave import ImageCodes, encode
from tokkit.media.resolutions import Buckets
from tokkit.packing.policy import TooLong

if TYPE_CHECKING:
    from tokkit.pipelines.prepare import Setup
    from tokkit.pipelines.shard import ShardConfig


def refuse_pictures_too_long(config: ShardConfig, setup: Setup) -> None:
    """Raise MediaTooLongError where no picture of this run would fit into a sequence."""
    if config.pack is None or config.pack_too_long is not TooLong.ERROR:
        return
    shortest = _shortest_picture(setup)
    if shortest is not None and shortest > config.pack:
        raise MediaTooLongError(
            f"--pack {config.pack}: a picture takes {shortest:,} tokens with its markers, and is never cut",
            shortest,
            f"Take --pack {shortest} or more, or --pack-too-long leave-out for a plan without the documents with pictures",
        )


def _shortest_picture(setup: Setup) -> int | None:
    """Tokens of the smallest picture, its markers included; None where there are none, or any size may occur."""
    fitting = setup.preprocessing
    if fitting is None:
        return None
    image: dict[str, Any] = setup.tokenizers["image"].detail
    if fitting.sizes is None:
        grids = [tuple(image["grid"])]
    elif isinstance(fitting.sizes, Buckets):
        factor = image["downsample"]
        grids = [(height // factor, width // factor) for width, height in fitting.sizes.sizes]
    else:
        return None
    codes = (np.zeros((image["codebooks"], *grid), dtype=np.int32) for grid in grids)
    return min(encode([ImageCodes(picture)], setup.vocabulary, setup.layout)[1][0].length for picture in codes)
