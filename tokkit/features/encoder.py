"""A frozen encoder put together: preparer, tower, reductions, layout.

``encode`` is one loop: units of all items in batches of a fixed number of slots, each view's tokens reduced, brought to the CPU
as float32 and laid out. See :mod:`tokkit.features.base` for what it promises.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel
from torch import Tensor

from tokkit.errors import UsageError
from tokkit.features.base import (
    FeatureOptions,
    FrameStacking,
    Grid,
    ItemFeatures,
    Modality,
    PixelShuffle,
    Prepared,
    Resampler,
    RunOptions,
)
from tokkit.features.layout import Arrangement, arrange, arrange_anyres
from tokkit.features.mel import AudioPreparer
from tokkit.features.preprocessing import ImagePreparer
from tokkit.features.reductions import reduce, reduced_dim, reduced_grid
from tokkit.features.resamplers import LearnedResampler
from tokkit.features.runner import Fetched, TowerRunner
from tokkit.features.slots import steady
from tokkit.features.tilings import Size
from tokkit.features.towers import Encoded, LlamaTower, QwenTower, Tower, Unit
from tokkit.storage import fingerprint_of

# Raised whenever other features come out for the same weights, options and item.
CODE_VERSION = 1


class PicturePreparer(Protocol):
    """Turns pictures into views without the model; picklable."""

    @property
    def preprocessing(self) -> BaseModel: ...

    @property
    def tiling(self) -> str: ...

    def grid(self, width: int, height: int) -> Grid | None:
        """Rows and columns of tiles; None where a picture is not cut."""
        ...

    def sizes(self, width: int, height: int) -> list[Size]:
        """Height and width of each view."""
        ...

    def prepare(self, media: Image.Image | NDArray[np.float32]) -> Prepared:
        """A picture to its views."""
        ...


@dataclass(frozen=True, eq=False)
class _Batch:
    """A batch on its way back: the items whose units are in it, their tokens, and their pooled embeddings."""

    numbers: list[int]
    tokens: Fetched | list[list[Fetched]]
    pooled: Fetched | None

    def fetched(self) -> list[Fetched]:
        """All that is on its way."""
        tokens = [self.tokens] if isinstance(self.tokens, Fetched) else [view for views in self.tokens for view in views]
        return tokens if self.pooled is None else [*tokens, self.pooled]

    def views(self) -> list[list[NDArray[np.float32]]]:
        """For each unit the tokens of its views."""
        if isinstance(self.tokens, Fetched):
            return [[tokens.copy()] for tokens in self.tokens.array()[: len(self.numbers)]]
        return [[view.array() for view in views] for views in self.tokens]


class PendingFeatures:
    """Items that are under way."""

    def __init__(self, batches: Sequence[_Batch], gather: Callable[[], list[ItemFeatures]]) -> None:
        self._batches, self._gather = batches, gather

    def ready(self) -> bool:
        """Whether :meth:`features` would not wait."""
        return all(one.ready() for batch in self._batches for one in batch.fetched())

    def features(self) -> list[ItemFeatures]:
        """Features of each item, in order; waits for them. May be asked for once."""
        return self._gather()


class TowerEncoder:
    """Implements :class:`tokkit.features.base.FeatureEncoder` over a tower.

    Args:
        about: what a manifest says of the model besides options: name, family, licence, digest of the weights, layers.
        run: how the network is run.

    Raises:
        UsageError: options that do not go together, or that this encoder does not have.
    """

    def __init__(
        self,
        tower: Tower,
        preparer: PicturePreparer | AudioPreparer,
        options: FeatureOptions,
        about: dict[str, Any],
        resampler: LearnedResampler | None = None,
        run: RunOptions | None = None,
    ) -> None:
        self.tower, self.preparer, self.options, self.resampler = tower, preparer, options, resampler
        self._steps = tuple(step for step in options.reductions if not isinstance(step, Resampler))
        self._steady: dict[int, int] = {}
        self._check()
        self._runner = TowerRunner(tower, run or RunOptions())
        self._about = about
        self._fingerprint = fingerprint_of({"code": CODE_VERSION, **self._identity()})

    @property
    def modality(self) -> Modality:
        """What it takes."""
        return "audio" if isinstance(self.preparer, AudioPreparer) else "image"

    @property
    def dim(self) -> int:
        """Of a token's features, after reductions."""
        return self.resampler.dim if self.resampler else reduced_dim(self._steps, self.tower.dim)

    @property
    def pooled_dim(self) -> int | None:
        """Of the pooled embedding."""
        return self.tower.pooled_dim

    @property
    def sample_rate(self) -> int | None:
        """Of waveforms, in Hz."""
        return self.preparer.preprocessing.sampling_rate if isinstance(self.preparer, AudioPreparer) else None

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over weights, preprocessing, tiling and options."""
        return self._fingerprint

    def describe(self) -> dict[str, Any]:
        """For a manifest; see :class:`tokkit.features.base.FeatureEncoder`."""
        return {
            "name": self._about["name"],
            "licence": self._about["licence"],
            "modality": self.modality,
            "dim": self.dim,
            "pooled_dim": self.pooled_dim,
            "fingerprint": self.fingerprint,
            **self._identity(),
        }

    def _identity(self) -> dict[str, Any]:
        """Everything that decides the features, and nothing else: no names, no places."""
        options = self.options
        about = {key: value for key, value in self._about.items() if key not in ("name", "licence")}
        identity = {
            **about,
            "precision": options.precision,
            "tokens": options.tokens,
            "pooled": options.pooled,
            "prefix_tokens": self._prefix,
            "preprocessing": self.preparer.preprocessing.model_dump(mode="json"),
            "tiling": self._tiling(),
            "reductions": [step.model_dump(mode="json") for step in self._steps],
        }
        if self.resampler:
            identity["reductions"].append(self.resampler.describe())
        return identity

    def _tiling(self) -> dict[str, Any]:
        options = self.options
        if isinstance(self.preparer, AudioPreparer):
            return {"kind": "windows", "padding": options.padding}
        kind = self.preparer.tiling
        found: dict[str, Any] = {"kind": kind}
        if isinstance(self.preparer, ImagePreparer):
            if kind == "anyres":
                found |= {"pinpoints": [list(size) for size in self.preparer.pinpoints], "merge": options.merge}
            elif kind == "internvl":
                found |= {name: getattr(options, name) for name in ("min_tiles", "max_tiles", "thumbnail")}
            elif kind == "native":
                found |= {"pixel_bounds": list(self.preparer.pixel_bounds)}
            elif kind == "none":
                found |= {"pad_square": options.pad_square}
        return found

    def prepare(self, media: Image.Image | NDArray[np.float32]) -> Prepared:
        """A picture or waveform to views; ``preparer`` is the same without the model, for worker processes."""
        return self.preparer.prepare(media)

    def tokens_of(self, width: int, height: int = 1) -> int:
        """How many tokens a picture of this size comes to, or a clip of ``width`` samples."""
        return self._arranged(width, height).tokens if self.options.tokens else 0

    def encode(self, items: Sequence[Prepared], batch_size: int) -> list[ItemFeatures]:
        """Features of each item, in order.

        The model sees batches of exactly ``batch_size`` views, or of the half, the quarter, ... of it where only in these an
        item comes out the same in every slot (:mod:`tokkit.features.slots`). This is found out at the first batch of a size.
        """
        return self.begin(items, batch_size).features()

    @property
    def places(self) -> int:
        """How often :meth:`begin` may be called before what the first gave is waited for."""
        return self._runner.places

    def begin(self, items: Sequence[Prepared], batch_size: int) -> PendingFeatures:
        """Send items on their way, as :meth:`encode` does; on a GPU this returns as soon as the work is queued."""
        units = [(number, unit) for number, item in enumerate(items) for unit in self.tower.units(item)]
        slots = self._slots(self.tower.units_per_batch(batch_size), units[0][1]) if units else 1
        batches: list[_Batch] = []
        for start in range(0, len(units), slots):
            chunk = units[start : start + slots]
            with self._runner.arithmetic():
                out = self._runner.run([unit for _, unit in chunk], slots)
                tokens = self._tokens(out, [unit for _, unit in chunk])
                pooled = None if out.pooled is None else self._runner.fetch(out.pooled)
            batches.append(_Batch([number for number, _ in chunk], tokens, pooled))
        return PendingFeatures(batches, lambda: self._gathered(items, batches))

    def _gathered(self, items: Sequence[Prepared], batches: list[_Batch]) -> list[ItemFeatures]:
        views: list[list[NDArray[np.float32]]] = [[] for _ in items]
        pooled: list[list[NDArray[np.float32]]] = [[] for _ in items]
        while batches:
            batch = batches.pop(0)  # and the memory that it takes on the device
            for number, found in zip(batch.numbers, batch.views(), strict=True):
                views[number] += found
            if batch.pooled is not None:
                for number, vector in zip(batch.numbers, batch.pooled.array(), strict=False):
                    pooled[number].append(vector)
        return [self._item(item, views[number], pooled[number]) for number, item in enumerate(items)]

    def _slots(self, asked: int, unit: Unit) -> int:
        """Units of a batch, so that it does not matter which slot one is in."""
        if asked not in self._steady:
            noise = self.tower.noise(unit)

            def run(slots: int) -> list[Tensor]:
                out = self._runner.run([noise] * slots, slots)
                found = [] if out.pooled is None else [out.pooled]
                if isinstance(out.tokens, Tensor):
                    return [*found, self._reduced(out.tokens, out.grids[0])]
                return [*found, *(torch.stack(views) for views in zip(*out.tokens, strict=True))]

            with self._runner.arithmetic():
                self._steady[asked] = steady(run, asked)
        return self._steady[asked]

    def _tokens(self, out: Encoded, units: Sequence[Unit]) -> Fetched | list[list[Fetched]]:
        """The reduced tokens of all units in one, or for each unit those of its views."""
        if not self.options.tokens:
            return [[] for _ in units]
        if isinstance(out.tokens, Tensor) and not (self.modality == "audio" and self.options.padding == "trim"):
            return self._runner.fetch(self._reduced(out.tokens, out.grids[0]))
        grids = iter(out.grids)
        fetched = []
        for slot, (item, views) in enumerate(units):
            found = []
            for number, view in enumerate(views):
                tokens, grid = out.tokens[slot], next(grids)
                tokens = tokens if isinstance(tokens, Tensor) else tokens[number]
                if isinstance(self.preparer, AudioPreparer):
                    grid = (1, self.preparer.windows(item.width)[view.column])
                    tokens = tokens[: grid[1]]
                found.append(self._runner.fetch(self._reduced(tokens[None], grid)[0]))
            fetched.append(found)
        return fetched

    def _reduced(self, tokens: Tensor, grid: Grid) -> Tensor:
        """float ``[B, prefix + rows * columns, D]`` to what is stored of it."""
        if self._steps:
            prefix, raster = tokens[:, : self.tower.prefix], tokens[:, self.tower.prefix :]
            raster = reduce(self._steps, raster.unflatten(1, grid)).flatten(1, 2)
            tokens = torch.cat([prefix, raster], dim=1) if self.tower.prefix else raster
        return self.resampler(tokens.float()) if self.resampler else tokens

    def _item(self, item: Prepared, views: list[NDArray[np.float32]], pooled: list[NDArray[np.float32]]) -> ItemFeatures:
        chosen = None
        if pooled:
            kinds = [view.kind for view in item.views]
            chosen = pooled[kinds.index("thumbnail") if "thumbnail" in kinds else 0]
        if not self.options.tokens:
            return ItemFeatures(np.zeros((0, self.dim), np.float32), valid=self._valid(item), pooled=chosen)
        arranged = self._arranged(item.width, item.height)
        features = views[0] if len(views) == 1 else np.concatenate(views)
        if arranged.order is not None:
            features = features[arranged.order]
        assert features.shape == (arranged.tokens, self.dim), (features.shape, arranged.tokens, self.dim)
        thw, extra = None, {}
        if isinstance(self.tower, QwenTower):
            patch = self.tower.patch
            thw = (1, item.views[0].pixels.shape[1] // patch, item.views[0].pixels.shape[2] // patch)
        if isinstance(self.tower, LlamaTower):
            extra = {"aspect_ratio_id": self.tower.aspect_ratio_id(item), "tiles": len(item.views)}
        return ItemFeatures(features, arranged.grid, arranged.tiles, arranged.newlines, thw, self._valid(item), chosen, extra)

    def _valid(self, item: Prepared) -> int | None:
        """Valid tokens after reductions, of a clip."""
        if not isinstance(self.preparer, AudioPreparer):
            return None
        return sum(self._stored((1, valid))[1] for valid in self.preparer.windows(item.width))

    @property
    def _prefix(self) -> int:
        return 0 if self.resampler else self.tower.prefix

    def _stored(self, grid: Grid) -> Grid:
        """The raster that is stored of a view with this raster."""
        return (1, self.resampler.queries) if self.resampler else reduced_grid(self._steps, grid)

    def _arranged(self, width: int, height: int) -> Arrangement:
        if isinstance(self.preparer, AudioPreparer):
            trimmed = self.options.padding == "trim"
            whole = self.tower.grid((1, 1))
            return arrange([self._stored((1, n) if trimmed else whole) for n in self.preparer.windows(width)], 0)
        rasters = [self._stored(self.tower.grid(size)) for size in self.preparer.sizes(width, height)]
        if self.preparer.tiling == "anyres":
            tiles = self.preparer.grid(width, height)
            assert tiles is not None
            if self.options.merge != "flat":
                return arrange_anyres(rasters, tiles, (height, width), self.options.merge)
        arranged = arrange(rasters, self._prefix)
        if isinstance(self.tower, QwenTower) and not self.tower.merged and not self.resampler:
            return Arrangement(arranged.tokens, None, None, (), None)  # in the merger's order, which is no raster
        return arranged

    def _check(self) -> None:
        options, tower = self.options, self.tower
        problems = []
        last = options.reductions[-1] if options.reductions else None
        if sum(isinstance(step, Resampler) for step in options.reductions) > int(isinstance(last, Resampler)):
            problems.append("a resampler is the last of the reductions, and there is one at most")
        if self._steps and isinstance(tower, QwenTower) and not tower.merged:
            problems.append("tokens before the merger stand in its own order and cannot be reduced; use merger='after'")
        if tower.prefix and any(isinstance(step, PixelShuffle | FrameStacking) for step in self._steps):
            problems.append("a class token has no place in a pixel shuffle or in stacked frames; use keep_cls=false")
        if any(isinstance(step, PixelShuffle) for step in self._steps):
            if isinstance(self.preparer, AudioPreparer):
                problems.append("a pixel shuffle is for pictures; sound has frames to stack")
            elif self.preparer.tiling in ("native", "naflex"):
                problems.append("a pixel shuffle needs rasters of one size; this model's differ with the picture")
        if not isinstance(self.preparer, AudioPreparer) and self.preparer.tiling == "anyres" and options.merge != "flat":
            if self.resampler:
                problems.append("a resampler leaves no raster to merge; use merge='flat'")
            if tower.prefix:
                problems.append("class tokens cannot stand in a merged raster; use merge='flat' or keep_cls=false")
        if self.resampler and self.resampler.input_dim != reduced_dim(self._steps, tower.dim):
            found = reduced_dim(self._steps, tower.dim)
            problems.append(f"the resampler takes features of {self.resampler.input_dim}, these have {found}")
        if not isinstance(self.preparer, AudioPreparer) and self.preparer.tiling not in ("native", "naflex") and not problems:
            reduced_grid(self._steps, tower.grid(self.preparer.sizes(64, 64)[0]))  # they divide it, or UsageError
        if problems:
            raise UsageError("; ".join(problems))
