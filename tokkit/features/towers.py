"""The encoders' networks: views of fixed shape in, hidden states out.

A tower is transformers' own model class with what a batch needs around it. It takes *units*: what the network sees as one item
of a batch (a view; for Llama 3.2 all tiles of a picture). Batches have one fixed number of units, the last is filled up with
zeros; Qwen2-VL's pictures have each a shape of their own and go one by one.

Hidden states are taken by hooks on the blocks, so that only those asked for are kept, and blocks that nobody needs are not run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tokkit.errors import UsageError
from tokkit.features.base import Grid, Layer, Prepared, View
from tokkit.features.tilings import Size, llama_grids

Unit = tuple[Prepared, Sequence[View]]
Output = tuple[Tensor, Tensor | None]  # hidden states, and the pooled embedding where there is one


@dataclass(frozen=True, slots=True)
class Encoded:
    """A batch of units.

    Attributes:
        tokens: for each view of each unit, float ``[prefix + rows * columns, D]``; where all are of one shape, one tensor
            ``[units, tokens, D]``.
        grids: of each view.
        pooled: float ``[units, D']`` or None.
    """

    tokens: Tensor | list[list[Tensor]]
    grids: list[Grid]
    pooled: Tensor | None = None


class Hidden:
    """Keeps the hidden states that were asked for while a model runs.

    Args:
        blocks: the tower's list of blocks; those behind the last that is needed are removed, unless ``whole``.
        layers: indices as in transformers' ``hidden_states``, or ``"final"``.
        tied: the last entry of ``hidden_states`` is the model's final, normalised state (so transformers has it for some).
        whole: the whole model is needed, for a pooled embedding.

    Raises:
        UsageError: there is no such layer.
    """

    def __init__(self, blocks: nn.ModuleList, layers: Sequence[Layer], *, tied: bool, whole: bool) -> None:
        count = len(blocks)
        self.wanted: list[Layer] = []
        for layer in layers:
            index = layer if layer == "final" or layer >= 0 else count + 1 + layer
            if index != "final" and not 0 <= index <= count:
                raise UsageError(f"layer {layer}: the model has {count} blocks, so layers from {-count - 1} to {count}")
            self.wanted.append("final" if tied and index == count else index)
        self._numbers = sorted({layer for layer in self.wanted if layer != "final"})
        if "final" not in self.wanted and not whole:
            del blocks[max(1, self._numbers[-1]) :]
        self.blocks = blocks
        self._kept: dict[int, Tensor] = {}

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Between entry and exit, blocks hand over what they put out."""
        handles = []
        for number in self._numbers:
            if number == 0:
                handles.append(self.blocks[0].register_forward_pre_hook(self._enters, with_kwargs=True))
            else:
                handles.append(self.blocks[number - 1].register_forward_hook(self._leaves(number)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def taken(self, final: Tensor) -> Tensor:
        """The states side by side in the order asked for: ``[..., D * layers]``."""
        states = [final if layer == "final" else self._kept[layer] for layer in self.wanted]
        self._kept = {}
        return states[0] if len(states) == 1 else torch.cat(states, dim=-1)

    def _enters(self, module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        self._kept[0] = arguments[0] if arguments else named["hidden_states"]

    def _leaves(self, number: int) -> Any:
        def keep(module: nn.Module, arguments: Any, output: Any) -> None:
            self._kept[number] = output[0] if isinstance(output, tuple) else output

        return keep


class Tower:
    """What all towers share; subclasses run batches.

    Attributes:
        model: the network, in its precision and on its device.
        dim: of a token.
        pooled_dim: of the pooled embedding, where there is one.
        prefix: tokens before each view's raster.
        recordable: the same kernels are launched for every batch of a shape, so that a CUDA graph may replay them.
        one_shape: all batches have one.
    """

    recordable: ClassVar[bool] = True
    one_shape: ClassVar[bool] = True

    def __init__(self, model: nn.Module, dim: int, prefix: int = 0, pooled_dim: int | None = None) -> None:
        self.model, self.dim, self.prefix, self.pooled_dim = model, dim, prefix, pooled_dim
        first = next(model.parameters())
        self.device, self.dtype = first.device, first.dtype

    def grid(self, size: Size) -> Grid:
        """Rows and columns of the tokens of a view of this height and width."""
        raise NotImplementedError

    def units(self, item: Prepared) -> list[Unit]:
        """What an item is for the network."""
        return [(item, (view,)) for view in item.views]

    def units_per_batch(self, batch_size: int) -> int:
        """How many units a batch of so many views has."""
        return batch_size

    def noise(self, like: Unit) -> Unit:
        """A unit of noise that fills a slot to its end, whatever it is made after (:mod:`tokkit.features.slots`)."""
        return like[0], [_noise(view.pixels.shape) for view in like[1]]

    @torch.no_grad()
    def run(self, units: Sequence[Unit], slots: int) -> Encoded:
        """Encode at most ``slots`` units in a batch of exactly ``slots``."""
        return self.encoded(self.network(*map(self.sent, self.inputs(units, slots))), units)

    def inputs(self, units: Sequence[Unit], slots: int) -> tuple[Tensor, ...]:
        """What a batch of exactly ``slots`` is for the network: tensors on the CPU, pinned where the network is on a GPU."""
        return (self._pixels(units, slots),)

    def sent(self, tensor: Tensor, non_blocking: bool = False) -> Tensor:
        """An input where the network is, in its precision."""
        there = tensor.to(self.device, non_blocking=non_blocking)
        return there.to(self.dtype) if there.is_floating_point() else there

    def network(self, *inputs: Tensor) -> Output:
        """The network itself: everything that happens on the device."""
        raise NotImplementedError

    def encoded(self, output: Output, units: Sequence[Unit]) -> Encoded:
        """What the network gave, view by view."""
        raise NotImplementedError

    def blocks(self) -> Iterable[nn.Module]:
        """The parts that ``torch.compile`` is given, each by itself."""
        return [self.model]

    def _pixels(self, units: Sequence[Unit], slots: int) -> Tensor:
        """float32 ``[slots, 3, H, W]`` of units with one view each."""
        shape = units[0][1][0].pixels.shape
        batch = self._zeros((slots, *shape))
        there = batch.numpy()
        for slot, (_, (view,)) in enumerate(units):
            there[slot] = view.pixels
        return batch

    def _zeros(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """Memory for an input."""
        return torch.zeros(shape, dtype=dtype, pin_memory=self.device.type == "cuda")


class PatchTower(Tower):
    """CLIP, SigLIP, DINOv2 and BLIP-2: square patches of pictures of one size, with or without special tokens before them.

    Args:
        specials: tokens that the model puts before the raster; ``keep`` says whether they stay.
        pool: from the model's output to ``[B, D']``, or None.
    """

    def __init__(
        self,
        model: nn.Module,
        hidden: Hidden,
        config: Any,
        *,
        specials: int,
        keep: bool,
        pool: Any = None,
        pooled_dim: int | None,
    ) -> None:
        super().__init__(model, config.hidden_size * len(hidden.wanted), specials if keep else 0, pooled_dim)
        self._hidden, self._patch, self._pool, self._dropped = hidden, config.patch_size, pool, 0 if keep else specials

    def grid(self, size: Size) -> Grid:
        """As the base class."""
        return size[0] // self._patch, size[1] // self._patch

    def network(self, *inputs: Tensor) -> Output:
        """As the base class."""
        (pixels,) = inputs
        with self._hidden.recording():
            output = self.model(pixel_values=pixels)
        return self._hidden.taken(output.last_hidden_state), self._pool(output) if self._pool else None

    def encoded(self, output: Output, units: Sequence[Unit]) -> Encoded:
        """As the base class."""
        states, pooled = output
        grid = self.grid(units[0][1][0].pixels.shape[1:])
        return Encoded(states[:, self._dropped :], [grid] * len(units), pooled)

    def blocks(self) -> Iterable[nn.Module]:
        """As the base class."""
        return self._hidden.blocks


class NaflexTower(Tower):
    """SigLIP 2 NaFlex: patches of pictures of any size, padded to one number of patches and masked."""

    recordable = False  # its embeddings of positions are made picture by picture

    def __init__(
        self, model: nn.Module, hidden: Hidden, config: Any, *, max_patches: int, pool: Any = None, pooled_dim: int | None
    ) -> None:
        super().__init__(model, config.hidden_size * len(hidden.wanted), 0, pooled_dim)
        self._hidden, self._patch, self._pool, self._most = hidden, config.patch_size, pool, max_patches

    def grid(self, size: Size) -> Grid:
        """As the base class."""
        return size[0] // self._patch, size[1] // self._patch

    def noise(self, like: Unit) -> Unit:
        """As many patches as there may be, in one row."""
        return like[0], [_noise((3, self._patch, self._patch * self._most))]

    def inputs(self, units: Sequence[Unit], slots: int) -> tuple[Tensor, ...]:
        """As the base class. Slots without a picture hold a black one of a single patch."""
        pixels = self._zeros((slots, self._most, 3 * self._patch**2))
        mask = self._zeros((slots, self._most), torch.int64)
        shapes = self._zeros((slots, 2), torch.int64)
        mask[:, 0] = 1
        shapes[:] = 1
        for slot, (_, (view,)) in enumerate(units):
            pixels.numpy()[slot], mask.numpy()[slot] = naflex_patches(view.pixels, self._patch, self._most)
            shapes.numpy()[slot] = self.grid(view.pixels.shape[1:])
        return pixels, mask, shapes

    def network(self, *inputs: Tensor) -> Output:
        """As the base class."""
        pixels, mask, shapes = inputs
        with self._hidden.recording():
            output = self.model(pixel_values=pixels, pixel_attention_mask=mask, spatial_shapes=shapes)
        return self._hidden.taken(output.last_hidden_state), self._pool(output) if self._pool else None

    def encoded(self, output: Output, units: Sequence[Unit]) -> Encoded:
        """As the base class."""
        states, pooled = output
        grids = [self.grid(view.pixels.shape[1:]) for _, (view,) in units]
        return Encoded([[states[slot, : grid[0] * grid[1]]] for slot, grid in enumerate(grids)], grids, pooled)

    def blocks(self) -> Iterable[nn.Module]:
        """As the base class."""
        return self._hidden.blocks


class QwenTower(Tower):
    """Qwen2-VL's vision tower, before or after its merger. Before, tokens stand in the merger's order: block by block."""

    recordable = one_shape = False  # each picture has a shape of its own

    def __init__(self, model: nn.Module, hidden: Hidden | None, config: Any, *, merged: bool) -> None:
        dim = config.hidden_size if merged else config.embed_dim * (len(hidden.wanted) if hidden else 1)
        super().__init__(model, dim)
        self._hidden, self._config, self.merged, self.patch = hidden, config, merged, int(config.patch_size)

    def grid(self, size: Size) -> Grid:
        """As the base class."""
        pixels = self._config.patch_size * (self._config.spatial_merge_size if self.merged else 1)
        return size[0] // pixels, size[1] // pixels

    def units_per_batch(self, batch_size: int) -> int:
        """One: each picture has a shape of its own."""
        return 1

    def inputs(self, units: Sequence[Unit], slots: int) -> tuple[Tensor, ...]:
        """As the base class."""
        [(_, (view,))] = units
        config = self._config
        patches, thw = qwen_patches(view.pixels, config.patch_size, config.spatial_merge_size, config.temporal_patch_size)
        pixels = self._zeros(patches.shape)
        pixels.numpy()[:] = patches
        return pixels, torch.tensor([thw])

    def network(self, *inputs: Tensor) -> Output:
        """As the base class."""
        pixels, grid_thw = inputs
        if self.merged or self._hidden is None:
            output = self.model(pixels, grid_thw=grid_thw)
            return (output.pooler_output if self.merged else output.last_hidden_state), None
        with self._hidden.recording():
            output = self.model(pixels, grid_thw=grid_thw)
        return self._hidden.taken(output.last_hidden_state), None

    def encoded(self, output: Output, units: Sequence[Unit]) -> Encoded:
        """As the base class."""
        [(_, (view,))] = units
        return Encoded([[output[0]]], [self.grid(view.pixels.shape[1:])])

    def blocks(self) -> Iterable[nn.Module]:
        """As the base class."""
        model: Any = self.model
        return model.blocks


class LlamaTower(Tower):
    """Llama 3.2 Vision: all tiles of a picture at once, padded to the model's number of tiles; several layers side by side."""

    def __init__(self, model: nn.Module, config: Any, *, keep: bool) -> None:
        dim = config.hidden_size * (1 + len(config.intermediate_layers_indices))
        super().__init__(model, dim, int(keep))
        self._patch, self._tiles, self._keep = config.patch_size, config.max_num_tiles, keep
        self._grids = llama_grids(config.max_num_tiles)

    def grid(self, size: Size) -> Grid:
        """As the base class."""
        return size[0] // self._patch, size[1] // self._patch

    def units(self, item: Prepared) -> list[Unit]:
        """A picture with all of its tiles."""
        return [(item, item.views)]

    def units_per_batch(self, batch_size: int) -> int:
        """Pictures whose tiles, padding and all, are no more than the batch, and one at least."""
        return max(1, batch_size // self._tiles)

    def noise(self, like: Unit) -> Unit:
        """As many tiles as there may be, in one row."""
        item, views = like
        return replace(item, tiles=(1, self._tiles)), [_noise(views[0].pixels.shape)] * self._tiles

    def aspect_ratio_id(self, item: Prepared) -> int:
        """By which the model looks up its embeddings of tiles."""
        assert item.tiles is not None
        return self._grids.index(item.tiles) + 1

    def inputs(self, units: Sequence[Unit], slots: int) -> tuple[Tensor, ...]:
        """As the base class. Slots without a picture hold a black one of one tile."""
        pixels = self._zeros((slots, 1, self._tiles, *units[0][1][0].pixels.shape))
        ids, mask = self._zeros((slots, 1), torch.int64), self._zeros((slots, 1, self._tiles), torch.int64)
        ids[:], mask[..., 0] = 1, 1
        for slot, (item, views) in enumerate(units):
            pixels.numpy()[slot, 0, : len(views)] = [view.pixels for view in views]
            ids[slot], mask[slot, 0, : len(views)] = self.aspect_ratio_id(item), 1
        return pixels, ids, mask

    def network(self, *inputs: Tensor) -> Output:
        """As the base class."""
        pixels, ids, mask = inputs
        output = self.model(pixel_values=pixels, aspect_ratio_ids=ids, aspect_ratio_mask=mask)
        return output.last_hidden_state, None

    def encoded(self, output: Output, units: Sequence[Unit]) -> Encoded:
        """As the base class."""
        states = output[0][:, 0, :, 0 if self._keep else 1 :]
        grid = self.grid(units[0][1][0].pixels.shape[1:])
        tokens = [[states[slot, tile] for tile in range(len(views))] for slot, (_, views) in enumerate(units)]
        return Encoded(tokens, [grid for _, views in units for _ in views])

    def blocks(self) -> Iterable[nn.Module]:
        """As the base class."""
        model: Any = self.model
        return [*model.transformer.layers, *model.global_transformer.layers]


class WhisperTower(Tower):
    """Whisper's encoder: windows of 30 seconds of log-mel spectrogram, two frames to one token."""

    def __init__(self, model: nn.Module, hidden: Hidden, config: Any) -> None:
        super().__init__(model, config.d_model * len(hidden.wanted))
        self._hidden, self._frames = hidden, config.max_source_positions

    def grid(self, size: Size) -> Grid:
        """One row of frames."""
        return 1, self._frames

    def network(self, *inputs: Tensor) -> Output:
        """As the base class."""
        with self._hidden.recording():
            output = self.model(*inputs)
        return self._hidden.taken(output.last_hidden_state), None

    def encoded(self, output: Output, units: Sequence[Unit]) -> Encoded:
        """As the base class."""
        return Encoded(output[0], [(1, self._frames)] * len(units))

    def blocks(self) -> Iterable[nn.Module]:
        """As the base class."""
        return self._hidden.blocks


class LatentTower(Tower):
    """One of our image tokenizers up to its quantizer: continuous latents, one at each place of the grid of codes.

    Args:
        encoder: the tokenizer's own, or that in another precision; what follows it is float32.
    """

    def __init__(self, tokenizer: Any, encoder: nn.Module) -> None:
        super().__init__(encoder, tokenizer.quantizer.dim)
        self._last, self._downsample = tokenizer.quant_conv, tokenizer.downsample

    def grid(self, size: Size) -> Grid:
        """As the base class."""
        return size[0] // self._downsample, size[1] // self._downsample

    def sent(self, tensor: Tensor, non_blocking: bool = False) -> Tensor:
        """As the base class, with the channels of a picture side by side where the weights have them so."""
        there = super().sent(tensor, non_blocking)
        last = self.device.type == "cuda" and self.dtype == torch.float16
        return there.contiguous(memory_format=torch.channels_last) if last else there

    def network(self, *inputs: Tensor) -> Output:
        """As the base class."""
        return self._last(self.model(*inputs).float()), None

    def encoded(self, output: Output, units: Sequence[Unit]) -> Encoded:
        """As the base class."""
        latents = output[0]
        return Encoded(latents.flatten(2).transpose(1, 2), [(latents.shape[2], latents.shape[3])] * len(units))


def _noise(shape: tuple[int, ...]) -> View:
    return View(np.random.default_rng(0).standard_normal(shape, dtype=np.float32))


def unit_length(vectors: Tensor) -> Tensor:
    """Divided by their Euclidean length, in float32."""
    vectors = vectors.float()
    return vectors / vectors.norm(dim=-1, keepdim=True)


def qwen_patches(
    pixels: NDArray[np.float32], patch: int, merge: int, temporal: int
) -> tuple[NDArray[np.float32], tuple[int, int, int]]:
    """float32 ``[3, H, W]`` to patches ``[tokens, 3 * temporal * patch * patch]`` in the merger's order, and ``grid_thw``.

    A still picture is a film of ``temporal`` equal frames.
    """
    rows, columns = pixels.shape[1] // patch, pixels.shape[2] // patch
    blocks = pixels.reshape(3, rows // merge, merge, patch, columns // merge, merge, patch).transpose(1, 4, 2, 5, 0, 3, 6)
    frames = np.repeat(blocks[:, :, :, :, :, None], temporal, axis=5)
    return frames.reshape(rows * columns, -1), (1, rows, columns)


def naflex_patches(pixels: NDArray[np.float32], patch: int, most: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """float32 ``[3, H, W]`` to patches ``[most, patch * patch * 3]``, row by row and padded with zeros, and a mask."""
    rows, columns = pixels.shape[1] // patch, pixels.shape[2] // patch
    patches = pixels.reshape(3, rows, patch, columns, patch).transpose(1, 3, 2, 4, 0).reshape(rows * columns, -1)
    padded = np.zeros((most, patches.shape[1]), np.float32)
    padded[: len(patches)] = patches
    return padded, (np.arange(most) < rows * columns).astype(np.int64)
