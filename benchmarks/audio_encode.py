"""EnCodec tokens: tokkit against the encodec package, one file at a time, on a CPU; and memory on a long signal.

    python benchmarks/audio_encode.py [--clips shared/data/audio] [--seconds 120] [--rounds 5] [--minutes 10] [--model 24k]

Both sides have the same drawn weights (speed does not depend on them) and codebooks filled from what the network gives; the
package keeps its weight norm, as it does for its users. Speed: each clip is encoded by both, in turn, the order changing from
round to round; what counts is the ratio of the two times for the same clip in the same round, so that what else the machine
does hits both. The clips are cut to ``--seconds`` in all; without ``--clips`` they are generated. Every code is compared.

Memory: each side encodes one signal of ``--minutes`` in a process of its own: the package whole (it has no other way), tokkit
from pieces of a second. Counted is what the encoding adds at its peak to what the process held before it (VmHWM, Linux).

With ``--device cuda`` only this: batches of ``--batch-size`` clips of one length, from samples in memory to codes in memory as
`tokkit shard` has them encoded, against the bare network and quantizer on the same batches, padded and on the device already.
The goal is 90 %. ``--device cpu --batch-size 2 --seconds 8 --rounds 1`` shows that it runs.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

SIDES = ("tokkit", "encodec")
LONGEST = 15  # seconds of a clip

Wave = npt.NDArray[np.float32]


def main() -> None:
    """Measure speed, then memory, and print both."""
    options = parse()
    if options.side:
        print(peak_of(options))
        return
    print(f"EnCodec {options.model}, {options.threads} thread(s)")
    if options.device is not None:
        batches(options)
        return
    speed(options)
    memory(options)


def parse() -> argparse.Namespace:
    """Options; ``--side`` is for the processes that this script starts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=Path, help="a folder with sound files (needs soundfile and soxr)")
    parser.add_argument("--seconds", type=float, default=120, help="of sound in all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=10, help="of the long signal")
    parser.add_argument("--model", choices=("24k", "48k"), default="24k")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", help="measure batches on it, against the bare network")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    return parser.parse_args()


def models(options: argparse.Namespace) -> tuple[Any, Any]:
    """(The package's model, ours with the same weights)."""
    import torch

    from tokkit.tokenizers.audio.encodec_package import import_encodec
    from tokkit.tokenizers.audio.model import EncodecTokenizer
    from tokkit.tokenizers.audio.presets import PRESETS

    warnings.simplefilter("ignore", FutureWarning)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    kind = import_encodec().EncodecModel
    theirs = (kind.encodec_model_24khz if options.model == "24k" else kind.encodec_model_48khz)(pretrained=False)
    theirs.requires_grad_(False)
    with torch.no_grad():
        rest = theirs.encoder(torch.randn(4, theirs.channels, theirs.sample_rate)).permute(0, 2, 1).flatten(0, 1)
        for layer in theirs.quantizer.vq.layers:
            book = layer._codebook
            book.embed.copy_(rest[torch.randint(0, len(rest), (book.codebook_size,))])
            book.embed.add_(0.05 * rest.std() * torch.randn_like(book.embed))
            book.inited.fill_(1)
            rest = rest - book.embed[torch.cdist(rest, book.embed).argmin(1)]
    ours = EncodecTokenizer(PRESETS[f"encodec-{options.model}"])
    state = {name: value for name, value in theirs.state_dict().items() if not name.startswith("quantizer.")}
    for name in [name for name in state if name.endswith("weight_g")]:
        stem = name.removesuffix("_g")
        state[stem] = torch._weight_norm(state.pop(f"{stem}_v"), state.pop(f"{stem}_g"), 0)
    state["codebooks"] = torch.stack([layer._codebook.embed for layer in theirs.quantizer.vq.layers])
    ours.load_weights(state)
    return theirs, ours


def their_codes(model: Any, wave: Wave) -> npt.NDArray[np.int32]:
    """As a user of the package gets them: the whole clip in one call."""
    import torch

    with torch.no_grad():
        frames = model.encode(torch.from_numpy(wave).unsqueeze(0))
    return torch.cat([codes[0] for codes, _ in frames], dim=1).to(torch.int32).numpy()


# ---- speed


def speed(options: argparse.Namespace) -> None:
    """Paired times over all clips and rounds."""
    theirs, ours = models(options)
    clips = list(cut(options, ours.sample_rate, ours.channels))
    seconds = sum(clip.shape[1] for clip in clips) / ours.sample_rate
    their_codes(theirs, clips[0])
    ours.encode([clips[0]])
    spent: dict[str, list[float]] = {side: [0.0] * options.rounds for side in SIDES}
    ratios = []
    frames = different = 0
    for turn in range(options.rounds):
        for i, clip in enumerate(clips):
            found, took = {}, {}
            for side in SIDES if (turn + i) % 2 else SIDES[::-1]:
                begin = time.perf_counter()
                found[side] = ours.encode([clip])[0].codes if side == "tokkit" else their_codes(theirs, clip)
                took[side] = time.perf_counter() - begin
                spent[side][turn] += took[side]
            ratios.append(took["encodec"] / took["tokkit"])
            if not turn:
                frames += found["tokkit"].shape[1]
                different += int((found["tokkit"] != found["encodec"]).any(axis=0).sum())
    print(f"  speed, {len(clips)} clips of {seconds:.0f} s in all, {options.rounds} rounds; times real time:")
    for side in SIDES:
        print(f"    {side:<10}{seconds / statistics.median(spent[side]):8.2f}")
    low, median, high = statistics.quantiles(ratios, n=4)
    print(f"    encodec's time / tokkit's, clip by clip: median {median:.2f} (quartiles {low:.2f} and {high:.2f})")
    print(f"    frames in which any of {ours.codebooks} codes differs: {different} of {frames:,}")


def batches(options: argparse.Namespace) -> None:
    """Clips of one length in batches, against the bare network on what is on the device already."""
    import torch

    from tokkit.precision import arithmetic

    _, ours = models(options)
    ours.to(options.device)
    size, length = options.batch_size, 10 * ours.sample_rate
    count = max(1, round(options.seconds / 10 / size)) * size
    rng = np.random.default_rng(0)
    clips = [(0.1 * rng.standard_normal((ours.channels, length))).astype(np.float32) for _ in range(count)]
    resident = torch.from_numpy(np.stack(clips)).to(options.device)

    def wait() -> None:
        if options.device.startswith("cuda"):
            torch.cuda.synchronize()

    def bare() -> None:
        with torch.inference_mode(), arithmetic("fp32"):
            for start in range(0, count, size):
                ours.network.quantizer.vq.encode(ours.network.encoder(resident[start : start + size]))
        wait()

    def whole() -> None:
        for start in range(0, count, size):
            ours.encode(clips[start : start + size], batch_size=size)
        wait()

    sides = {"bare network, on the device": bare, "tokkit, from memory to codes": whole}
    spent: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(options.rounds + 1):
        for name in list(sides)[:: 1 if turn % 2 else -1]:
            begin = time.perf_counter()
            sides[name]()
            if turn:
                spent[name].append(time.perf_counter() - begin)
    name = torch.cuda.get_device_name() if options.device.startswith("cuda") else "CPU"
    print(f"  {name}, {count} clips of 10 s in batches of {size}, fp32, {options.rounds} rounds; times real time:")
    for side, seconds in spent.items():
        print(f"    {side:<30}{10 * count / statistics.median(seconds):10.1f}")
    one, other = spent.values()
    share = statistics.median(a / b for a, b in zip(one, other, strict=True))
    print(f"    share of the bare network {share:.1%} (goal 90%)")


def cut(options: argparse.Namespace, rate: int, channels: int) -> Iterator[Wave]:
    """Clips of at most fifteen seconds, ``--seconds`` in all."""
    left = int(options.seconds * rate)
    for clip in decoded(options.clips, rate, channels) if options.clips else generated(rate, channels):
        clip = clip[:, : min(LONGEST * rate, left)]
        if clip.shape[1] >= rate:
            yield np.ascontiguousarray(clip)
            left -= clip.shape[1]
        if left < rate:
            return


def decoded(folder: Path, rate: int, channels: int) -> Iterator[Wave]:
    """The sound files of a folder."""
    import soundfile
    import soxr

    for path in sorted(path for path in folder.rglob("*") if path.suffix in (".wav", ".flac", ".mp3", ".ogg")):
        samples, found = soundfile.read(path, dtype="float32", always_2d=True)
        samples = soxr.resample(samples.mean(axis=1), found, rate)
        yield np.repeat(samples[None].astype(np.float32), channels, axis=0)


def generated(rate: int, channels: int) -> Iterator[Wave]:
    """Noise and sweeps between one and fifteen seconds, without end."""
    rng = np.random.default_rng(0)
    while True:
        samples = int(rng.integers(rate, LONGEST * rate))
        t = np.arange(samples) / rate
        tone = 0.4 * np.sin(2 * np.pi * (80 * t + rng.uniform(100, 800) * t**2))
        yield (tone + 0.05 * rng.standard_normal((channels, samples))).astype(np.float32)


# ---- memory


def memory(options: argparse.Namespace) -> None:
    """Each side in a process of its own."""
    command = [sys.executable, __file__, "--minutes", str(options.minutes), "--model", options.model]
    command += ["--threads", str(options.threads), "--side"]
    print(f"  memory, one signal of {options.minutes:g} minutes (what encoding it adds):")
    found = {}
    for side in SIDES:
        done = subprocess.run([*command, side], capture_output=True, text=True, check=True)
        found[side] = float(done.stdout)
        print(f"    {side:<10}{found[side]:9.0f} MB")
    print(f"    tokkit takes 1/{found['encodec'] / max(found['tokkit'], 1):.0f}")


def peak_of(options: argparse.Namespace) -> float:
    """Megabytes that encoding the long signal adds, in this process."""
    theirs, ours = models(options)
    rng = np.random.default_rng(0)
    rate, channels = ours.sample_rate, ours.channels

    def second() -> Wave:
        return (0.1 * rng.standard_normal((channels, rate))).astype(np.float32)

    count = round(60 * options.minutes)
    ours.encode([second()])
    whole = np.concatenate([second() for _ in range(count)], axis=1) if options.side == "encodec" else None
    before = resident()
    Path("/proc/self/clear_refs").write_text("5")
    if whole is None:
        ours.encode_stream(second() for _ in range(count))
    else:
        their_codes(theirs, whole)
    return (high_water() - before) / 1024


def resident() -> int:
    """Kilobytes in memory now."""
    return _status("VmRSS")


def high_water() -> int:
    """Kilobytes in memory at the most since the mark was reset."""
    return _status("VmHWM")


def _status(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1])


if __name__ == "__main__":
    main()
