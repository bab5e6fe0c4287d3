"""EnCodec: waveforms to codes and back through encodec's own network, in batches, in pieces and in segments.

Three ways to one result. A long clip goes through the network in pieces of a fixed length (:mod:`.streaming`), so that memory
does not grow with it; clips of unequal lengths share a batch, each padded as it would be alone (:mod:`.ragged`); a tokenizer
with segments (48 kHz) encodes each segment by itself. In exact arithmetic all give what encodec gives for the clip alone and
whole; in float32 a code may differ where two vectors are equally near up to rounding. Which way a clip goes, and in which
shape, depends on its own length alone: its codes never depend on the clips beside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tokkit.errors import DataError, VocabularyError
from tokkit.precision import arithmetic
from tokkit.tokenizers.audio.base import AudioCode, AudioTokenizer, Buckets, Waveform
from tokkit.tokenizers.audio.config import AudioTokenizerConfig
from tokkit.tokenizers.audio.quantizers import codebooks_of
from tokkit.tokenizers.audio.ragged import encode_ragged
from tokkit.tokenizers.audio.seanet import build_network, shortest
from tokkit.tokenizers.audio.streaming import stream_of
from tokkit.tokenizers.folder import fingerprint_of_weights

CPU_PIECE_SECONDS = 2  # what runs fastest on one core: longer pieces leave its cache
PIECE_SECONDS = 20
BATCH_SIZE = 8  # elsewhere than on a CPU


class EncodecTokenizer(AudioTokenizer):
    """An EnCodec model; fresh (random weights, empty codebooks, which encode nothing) until weights are loaded.

    Attributes:
        network: encodec's encoder and decoder, weight norm fused, and the quantizer between them.
        books: the quantizer, as encoding and files see it.
    """

    def __init__(self, config: AudioTokenizerConfig) -> None:
        self.config = config
        self.network: Any = build_network(config).eval().requires_grad_(False)
        self.books = codebooks_of(self.network.quantizer)
        self._filled = False

    # ---- weights

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.network.parameters()).device

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.network.parameters()).dtype

    def to(self, device: str | torch.device) -> EncodecTokenizer:
        """Move the weights; returns the tokenizer."""
        self.network.to(device)
        return self

    def weights(self) -> dict[str, Tensor]:
        """The tensors that make up the tokenizer, by name, contiguous and on the CPU; nothing that only training needs."""
        return {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(self.shapes().items())}

    def shapes(self) -> dict[str, Tensor]:
        """:meth:`weights` wherever they are, and be it nowhere."""
        state = self.network.state_dict()
        found = {name: value for name, value in state.items() if not name.startswith("quantizer.")}
        return found | self.books.tensors()

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Take the tensors of :meth:`weights`; names and shapes must be right.

        Raises:
            DataError: a codebook that was never trained.
        """
        self.network.load_state_dict(weights, strict=False)  # that of the books is no name of the network's
        self.books.load(weights)
        self._filled = False
        self.check_books()

    def check_books(self) -> None:
        """Refuse to go on with empty codebooks.

        Raises:
            DataError: a codebook that was never trained.
        """
        if self._filled:
            return
        empty = self.books.empty()
        if empty:
            raise DataError(
                f"the audio tokenizer {self.config.name} has codebooks that were never initialised (all zero): "
                f"{', '.join(map(str, empty))}. Every sound would get the same code"
            )
        self._filled = True

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over the configuration and all weights; computed on every access."""
        return fingerprint_of_weights(self.config.identity(), self.weights())

    # ---- encoding

    def encode(self, waveforms: Sequence[Waveform], *, batch_size: int | None = None, exact: bool = False) -> list[AudioCode]:
        """The codes of each waveform (:meth:`tokkit.tokenizers.audio.base.AudioTokenizer.encode`)."""
        self.check_books()
        for waveform in waveforms:
            self._check(waveform)
        size = batch_size or (1 if self.device.type == "cpu" else BATCH_SIZE)
        with self._exactly():
            if self.config.segment is not None:
                return self._encode_segments(waveforms, 1 if exact else size)
            if exact:
                return [self._encode_whole(waveform) for waveform in waveforms]
            return self._encode_clips(waveforms, size)

    def encode_stream(self, chunks: Iterable[Waveform]) -> AudioCode:
        """The codes of one waveform in pieces: those of ``encode([whole], batch_size=1)``, bit for bit."""
        self.check_books()
        with self._exactly():
            if self.config.segment is not None:
                return self._stream_segments(self._checked(chunks), self.config.segment)
            return self._stream_pieces(self._checked(chunks))

    def _check(self, waveform: Waveform) -> None:
        if waveform.ndim != 2 or waveform.shape[0] != self.channels or waveform.dtype != np.float32:
            raise ValueError(f"expected float32 [{self.channels}, samples], not {waveform.dtype} {list(waveform.shape)}")
        if not waveform.shape[1]:
            raise ValueError("a waveform of no samples")
        if not np.isfinite(waveform).all():
            raise ValueError("a waveform with samples that are not finite")

    def _checked(self, chunks: Iterable[Waveform]) -> Iterator[Waveform]:
        for chunk in chunks:
            if chunk.ndim == 2 and not chunk.shape[1]:
                continue
            self._check(chunk)
            yield chunk

    def _tensor(self, waveform: Waveform) -> Tensor:
        """``[1, C, T]`` where the weights are."""
        return torch.from_numpy(np.ascontiguousarray(waveform)).to(self.device, self._dtype).unsqueeze(0)

    def _codes(self, features: Tensor) -> npt.NDArray[np.int32]:
        """Features ``[B, D, t]`` to codes ``[B, K, t]``."""
        return self.books.codes(features).to(torch.int32).cpu().numpy()

    def _encode_whole(self, waveform: Waveform) -> AudioCode:
        codes = self._codes(self.network.encoder(self._tensor(waveform)))[0]
        return AudioCode(codes, None, waveform.shape[1])

    # ---- clips without segments

    @property
    def _piece(self) -> int:
        """Samples that a long clip goes through the network in at a time."""
        seconds = CPU_PIECE_SECONDS if self.device.type == "cpu" else PIECE_SECONDS
        return -(-max(seconds * self.sample_rate, self._shortest) // self.hop) * self.hop

    @cached_property
    def _shortest(self) -> int:
        """Samples under which the network must see a clip, or a clip's codes, whole."""
        return max(shortest(self.network.encoder), shortest(self.network.decoder) * self.hop)

    @cached_property
    def buckets(self) -> Buckets:
        """Which clips share a batch (:class:`tokkit.tokenizers.audio.base.Buckets`)."""
        longest = PIECE_SECONDS * self.sample_rate
        if self.config.segment is not None:
            return Buckets(self.hop, 1, longest, self.config.segment)
        return Buckets(self.hop, self._shortest, longest)

    def _encode_clips(self, waveforms: Sequence[Waveform], size: int) -> list[AudioCode]:
        found: dict[int, AudioCode] = {}
        buckets: dict[int, list[int]] = {}
        for i, waveform in enumerate(waveforms):
            length = None if size == 1 else self.buckets.of(waveform.shape[1])
            if length is None:
                found[i] = self._stream_pieces([waveform])
            else:
                buckets.setdefault(length, []).append(i)
        for length, members in sorted(buckets.items()):
            for start in range(0, len(members), size):
                batch = members[start : start + size]
                found |= zip(batch, self._encode_batch([waveforms[i] for i in batch], length, size), strict=True)
        return [found[i] for i in range(len(waveforms))]

    def _encode_batch(self, clips: list[Waveform], length: int, size: int) -> list[AudioCode]:
        """One call of the network in the shape of a whole batch, filled up with silence."""
        batch = np.zeros((size, self.channels, length), dtype=np.float32)
        lengths = np.full(size, length, dtype=np.int64)
        for slot, clip in enumerate(clips):
            batch[slot, :, : clip.shape[1]] = clip
            lengths[slot] = clip.shape[1]
        waves = torch.from_numpy(batch).to(self.device, self._dtype)
        features, _ = encode_ragged(self.network.encoder.model, waves, torch.from_numpy(lengths).to(self.device))
        codes = self._codes(features)
        return [
            AudioCode(codes[slot, :, : self.frames(clip.shape[1])].copy(), None, clip.shape[1])
            for slot, clip in enumerate(clips)
        ]

    def _stream_pieces(self, chunks: Iterable[Waveform]) -> AudioCode:
        node, codes, samples = stream_of(self.network.encoder.model), [], 0
        for piece in pieces(chunks, self._piece):
            if not samples and piece.shape[1] < self._piece:
                return self._encode_whole(piece)  # all there is
            samples += piece.shape[1]
            features = node.push(self._tensor(piece))
            if features is not None:
                codes.append(self._codes(features)[0])
        if not samples:
            raise ValueError("a waveform of no samples")
        features = node.finish()
        if features is not None:
            codes.append(self._codes(features)[0])
        return AudioCode(np.concatenate(codes, axis=1), None, samples)

    # ---- clips in segments

    def _encode_segments(self, waveforms: Sequence[Waveform], size: int) -> list[AudioCode]:
        """Whole segments of all clips in batches of one shape; the shorter ones at the ends of clips alone."""
        spans = [(i, start, end) for i, w in enumerate(waveforms) for start, end in self.config.segments(w.shape[1])]
        full = [span for span in spans if span[2] - span[1] == self.config.segment]
        found: dict[tuple[int, int, int], tuple[npt.NDArray[np.int32], np.float32 | None]] = {}
        for start in range(0, len(full), size):
            members = full[start : start + size]
            batch = np.zeros((size, self.channels, self.config.segment or 0), dtype=np.float32)
            for slot, (i, begin, end) in enumerate(members):
                batch[slot] = waveforms[i][:, begin:end]
            found |= zip(members, self._encode_equal(batch), strict=False)  # what fills the batch up is left out
        for i, begin, end in set(spans) - set(full):
            found[i, begin, end] = self._encode_equal(waveforms[i][None, :, begin:end])[0]
        clips: list[list[tuple[npt.NDArray[np.int32], np.float32 | None]]] = [[] for _ in waveforms]
        for span in spans:
            clips[span[0]].append(found[span])
        return [self._joined(segments, w.shape[1]) for segments, w in zip(clips, waveforms, strict=True)]

    def _stream_segments(self, chunks: Iterable[Waveform], segment: int) -> AudioCode:
        stride = self.config.stride or segment
        segments, samples, held = [], 0, np.zeros((self.channels, 0), dtype=np.float32)
        for chunk in chunks:
            samples += chunk.shape[1]
            held = np.concatenate([held, chunk], axis=1)
            while held.shape[1] >= segment:
                segments += self._encode_equal(held[None, :, :segment])
                held = held[:, stride:]
        if not samples:
            raise ValueError("a waveform of no samples")
        while held.shape[1]:
            segments += self._encode_equal(held[None, :, :segment])
            held = held[:, stride:]
        return self._joined(segments, samples)

    def _encode_equal(self, batch: Waveform) -> list[tuple[npt.NDArray[np.int32], np.float32 | None]]:
        """(Codes ``[K, t]``, scale) of each of several segments of one length, ``[B, C, n]``."""
        waves = torch.from_numpy(np.ascontiguousarray(batch)).to(self.device, self._dtype)
        scales: list[np.float32 | None] = [None] * len(waves)
        if self.config.normalize:
            scale = 1e-8 + waves.mean(dim=1, keepdim=True).pow(2).mean(dim=2, keepdim=True).sqrt()
            waves = waves / scale
            scales = list(scale.reshape(-1).to(torch.float32).cpu().numpy())
        return list(zip(self._codes(self.network.encoder(waves)), scales, strict=True))

    def _joined(self, segments: list[tuple[npt.NDArray[np.int32], np.float32 | None]], samples: int) -> AudioCode:
        scales = np.array([scale for _, scale in segments], dtype=np.float32) if self.config.normalize else None
        return AudioCode(np.concatenate([codes for codes, _ in segments], axis=1), scales, samples)

    # ---- decoding

    def decode(self, code: AudioCode) -> Waveform:
        """float32 ``[channels, samples]`` (:meth:`tokkit.tokenizers.audio.base.AudioTokenizer.decode`)."""
        return np.concatenate(list(self.decode_stream(code)), axis=1)

    def decode_stream(self, code: AudioCode) -> Iterator[Waveform]:
        """:meth:`decode` in pieces, in bounded memory."""
        self.check_books()
        self._check_code(code)
        left = code.samples
        for output in self._decoded_pieces(code) if self.config.segment is None else self._decoded_segments(code):
            piece = output[0, :, :left].to(torch.float32).cpu().numpy()
            left -= piece.shape[1]
            if piece.shape[1]:
                yield piece

    def _check_code(self, code: AudioCode) -> None:
        codes, segments = code.codes, len(self.config.segments(code.samples))
        frames = self.frames(code.samples)
        if codes.ndim != 2 or not 1 <= len(codes) <= self.codebooks or not np.issubdtype(codes.dtype, np.integer):
            found = f"{codes.dtype} {list(codes.shape)}"
            raise ValueError(f"expected integers [at most {self.codebooks} books, frames], not {found}")
        if code.samples < 1 or codes.shape[1] != frames:
            raise ValueError(f"{code.samples} samples are {frames} frames, not {codes.shape[1]}")
        if self.config.normalize and (code.scales is None or len(code.scales) != segments):
            raise ValueError(f"{segments} segments need as many scales, not {0 if code.scales is None else len(code.scales)}")
        low, high = int(codes.min()), int(codes.max())
        if low < 0 or high >= self.codebook_size:
            raise VocabularyError(f"the code {low if low < 0 else high} is outside of 0 to {self.codebook_size - 1}")

    def _features(self, codes: npt.NDArray[np.int32]) -> Tensor:
        """Codes ``[K, t]`` to features ``[1, D, t]``."""
        indices = torch.from_numpy(np.ascontiguousarray(codes)).to(self.device, torch.int64)
        return self.books.features(indices.unsqueeze(0)).to(self._dtype)

    def _decoded_pieces(self, code: AudioCode) -> Iterator[Tensor]:
        step = self._piece // self.hop
        if code.codes.shape[1] <= step:
            yield self._decoded(code.codes)
            return
        node = stream_of(self.network.decoder.model)
        for start in range(0, code.codes.shape[1], step):
            with self._exactly():
                output = node.push(self._features(code.codes[:, start : start + step]))
            if output is not None:
                yield output
        with self._exactly():
            output = node.finish()
        if output is not None:
            yield output

    def _decoded_segments(self, code: AudioCode) -> Iterator[Tensor]:
        """Segments, each faded in and out over what it shares with its neighbours."""
        spans, stride = self.config.segments(code.samples), self.config.stride or 1
        weight, held, shares = torch.empty(0), torch.empty(0), torch.empty(0)
        first = 0
        for s, (start, end) in enumerate(spans):
            frames = -(-(end - start) // self.hop)
            output = self._decoded(code.codes[:, first : first + frames], None if code.scales is None else code.scales[s])
            first += frames
            if not s:
                weight = _fade(output)
                held, shares = torch.zeros_like(output[..., :0]), torch.zeros_like(weight[:0])
            share = weight[: output.shape[-1]]
            held, shares = _overlaid(held, output * share), _overlaid(shares, share)
            ready = held.shape[-1] if s == len(spans) - 1 else stride
            yield held[..., :ready] / shares[:ready]
            held, shares = held[..., ready:], shares[ready:]

    def _decoded(self, codes: npt.NDArray[np.int32], scale: np.float32 | None = None) -> Tensor:
        """float ``[1, C, n]`` from the codes of a whole clip or segment."""
        with self._exactly():
            output: Tensor = self.network.decoder(self._features(codes))
            return output if scale is None else output * float(scale)

    @contextmanager
    def _exactly(self) -> Iterator[None]:
        """No gradients, no lower precision, no kernels that are chosen by timing: float32 as it is on paper."""
        with torch.inference_mode(), torch.autocast(self.device.type, enabled=False), arithmetic("fp32"):
            yield


def pieces(chunks: Iterable[Waveform], length: int) -> Iterator[Waveform]:
    """The same samples in pieces of one length; the last may be shorter."""
    held: list[Waveform] = []
    count = 0
    for chunk in chunks:
        start = 0
        while chunk.shape[1] - start >= length - count:
            end = start + length - count
            yield np.concatenate([*held, chunk[:, start:end]], axis=1) if held else chunk[:, start:end]
            held, count, start = [], 0, end
        if start < chunk.shape[1]:
            held.append(chunk[:, start:].copy())
            count += chunk.shape[1] - start
    if held:
        yield np.concatenate(held, axis=1)


def _fade(segment: Tensor) -> Tensor:
    """A triangle over a segment, which never quite comes to zero."""
    position = torch.linspace(0, 1, segment.shape[-1] + 2, device=segment.device, dtype=segment.dtype)[1:-1]
    return 0.5 - (position - 0.5).abs()


def _overlaid(before: Tensor, after: Tensor) -> Tensor:
    """Both added up from the same start."""
    length = max(before.shape[-1], after.shape[-1])
    return torch.nn.functional.pad(before, (0, length - before.shape[-1])) + torch.nn.functional.pad(
        after, (0, length - after.shape[-1])
    )
