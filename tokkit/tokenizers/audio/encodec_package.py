"""The encodec package, imported whether torchaudio loads or not.

encodec asks for torchaudio as soon as any part of it is imported, and needs it only to read files, to resample, and for one
spectrogram of its discriminators. torchaudio in turn loads only beside the torch that it was built for: with another it fails
with an OSError or a RuntimeError. Where it does not load, a stand-in takes its place for as long as encodec is imported, and
the rest of the process sees torchaudio as it was: absent or broken.
"""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from tokkit.errors import UsageError

NAME = "torchaudio"

_lock = threading.RLock()


def import_encodec() -> ModuleType:
    """The ``encodec`` package, with ``encodec.modules``, ``encodec.quantization`` and ``encodec.msstftd`` loaded.

    Raises:
        UsageError: it is not installed, or does not import.
    """
    with _lock:
        loaded = sys.modules.get("encodec")
        if loaded is not None and "encodec.msstftd" in sys.modules:
            return loaded
        with _torchaudio():
            try:
                package = importlib.import_module("encodec")
                importlib.import_module("encodec.msstftd")
            except Exception as error:  # a package of others, at import: anything can come
                raise UsageError(_advice(error)) from error
        return package


def _advice(error: Exception) -> str:
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if missing == "encodec":
        return (
            "EnCodec models need the encodec package, which is not installed: pip install --no-deps encodec einops "
            "(without --no-deps it brings a torchaudio that may not load beside this torch; tokkit does not need it)"
        )
    if missing is not None:
        return f"the encodec package needs {missing}, which is not installed: pip install {missing}"
    found = f"{type(error).__name__}: {error}"
    return f"the encodec package does not import ({found}); pip install --no-deps --force-reinstall encodec"


@contextmanager
def _torchaudio() -> Iterator[None]:
    """While this lasts ``import torchaudio`` works: by itself, or with the stand-in, which is gone afterwards."""
    if _loads():
        yield
        return
    stand_in = _stand_in()
    entries = {NAME: stand_in, f"{NAME}.transforms": stand_in.transforms}
    sys.modules.update(entries)
    try:
        yield
    finally:
        for name, module in entries.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]


def _loads() -> bool:
    """Whether torchaudio can be had; what a failed import leaves behind is taken away."""
    before = set(_entries())
    try:
        importlib.import_module(NAME)
        return callable(importlib.import_module(f"{NAME}.transforms").Spectrogram)
    except Exception:  # ImportError where it is absent; OSError, RuntimeError and others where its libraries do not load
        for name in set(_entries()) - before:
            del sys.modules[name]
        return False


def _entries() -> list[str]:
    return [name for name in sys.modules if name == NAME or name.startswith(f"{NAME}.")]


class Spectrogram(nn.Module):
    """Complex spectrogram of a waveform ``[..., T]``: ``[..., n_fft / 2 + 1, frames]``, as torchaudio's with ``power=None``.

    ``normalized`` divides by the window's norm.
    """

    window: Tensor

    def __init__(
        self,
        n_fft: int,
        win_length: int,
        hop_length: int,
        window_fn: Callable[[int], Tensor] = torch.hann_window,
        normalized: bool = False,
        center: bool = False,
        pad_mode: str | None = None,
        power: float | None = None,
    ) -> None:
        super().__init__()
        if center or power is not None:
            raise NotImplementedError("the stand-in for torchaudio makes complex spectrograms without centring only")
        self.n_fft, self.win_length, self.hop_length, self.normalized = n_fft, win_length, hop_length, normalized
        self.register_buffer("window", window_fn(win_length))

    def forward(self, waveform: Tensor) -> Tensor:
        flat = waveform.reshape(-1, waveform.shape[-1])
        spectrum = torch.stft(
            flat, self.n_fft, self.hop_length, self.win_length, self.window, center=False, return_complex=True
        )
        if self.normalized:
            spectrum = spectrum / self.window.pow(2.0).sum().sqrt()
        return spectrum.reshape(*waveform.shape[:-1], *spectrum.shape[-2:])


class _Resample(nn.Module):
    """A name that encodec asks for; tokkit resamples elsewhere."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError("torchaudio does not load here, and encodec's own resampling needs it")


def _stand_in() -> Any:
    module, transforms = ModuleType(NAME), ModuleType(f"{NAME}.transforms")
    vars(transforms).update(Spectrogram=Spectrogram, Resample=_Resample)
    vars(module).update(transforms=transforms, __path__=[])
    return module
