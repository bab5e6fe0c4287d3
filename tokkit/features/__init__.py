"""Frozen encoders: pictures and clips to features, once, for models that project them.

Importing this package loads neither torch nor transformers.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from tokkit.features.base import FeatureEncoder, FeatureOptions, RunOptions


def load_feature_encoder(
    source: str | Path,
    options: FeatureOptions | None = None,
    *,
    device: str | torch.device = "cpu",
    allow_download: bool = False,
    run: RunOptions | None = None,
) -> FeatureEncoder:
    """A frozen encoder from a folder as transformers writes it, or from a tokenizer's folder (its continuous latents).

    Args:
        source: a folder with ``config.json``, ``preprocessor_config.json`` and ``model.safetensors``; or the folder of one of
            our image tokenizers; or, with ``allow_download``, a name on the Hugging Face hub.
        options: what is taken of it (:class:`tokkit.features.base.FeatureOptions`).
        run: how the network is run (:class:`tokkit.features.base.RunOptions`); float32 unless told otherwise.

    Raises:
        UsageError: no such folder, or transformers is not installed (``pip install tokkit[features]``), or an option that this
            encoder does not have.
        DataError: a file is missing, damaged or of a model that is not supported.
    """
    from tokkit.features.base import FeatureOptions, RunOptions
    from tokkit.features.loading import load

    return load(source, options or FeatureOptions(), device=device, allow_download=allow_download, run=run or RunOptions())
