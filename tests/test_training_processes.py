"""Several processes train one tokenizer together (torchrun, gloo): the same weights and codebook statistics in all of them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from test_train_vq import drawn

# What both processes hold at the end, compared: networks, averages, optimisers, codebook statistics, window.
SCRIPT = """
    import hashlib, json, sys
    from pathlib import Path
    import torch
    from torch import distributed
    from vector_quantize_pytorch import VectorQuantize

    VectorQuantize(dim=4, codebook_size=8)  # built before the processes know of each other
    torch.set_num_threads(1)
    from tokkit.pipelines.progress import SilentProgress
    from tokkit.pipelines.train_vq import TrainVQConfig, _Run, train_vq

    def digest(value):
        if isinstance(value, torch.Tensor):
            return hashlib.sha256(value.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()).hexdigest()
        if isinstance(value, dict):
            return {str(k): digest(v) for k, v in value.items()}
        return [digest(v) for v in value] if isinstance(value, list | tuple) else repr(value)

    write = _Run._write

    def compared(self, end):
        mine = digest(self.engine.state()) | {"window": digest([torch.from_numpy(self.window.counts)])}
        found = [None] * self.world.size
        if self.world.size > 1:
            distributed.all_gather_object(found, mine)
        else:
            found = [mine]
        if self.world.main:
            different = [k for k in mine if any(other[k] != mine[k] for other in found)]
            answer = {"different": different, "size": self.world.size, "counted": int(self.window.counts.sum())}
            Path(sys.argv[1], "answer.json").write_text(json.dumps(answer))
        return write(self, end)

    _Run._write = compared
    train_vq(TrainVQConfig.model_validate(json.loads(sys.argv[2]) | {"out": Path(sys.argv[1]) / "vq"}), SilentProgress())
"""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def together(tmp_path: Path, processes: int, options: dict[str, object]) -> dict[str, object]:
    """Train in so many processes; what they compared, and the result."""
    tmp_path.mkdir()
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(SCRIPT))
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(processes)}
    started = [
        subprocess.Popen(
            [sys.executable, str(script), str(tmp_path), json.dumps(options)],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]
    try:
        for process in started:
            _, told = process.communicate(timeout=280)
            assert process.returncode == 0, told
    finally:
        for process in started:
            process.kill()
    result = json.loads((tmp_path / "vq" / "training.json").read_text())["result"]
    return json.loads((tmp_path / "answer.json").read_text()) | result


@pytest.mark.slow
def test_two_processes_have_one_tokenizer(tmp_path: Path) -> None:
    """A GAN with a VQ codebook whose dead codes are revived, in two parts each: everything equal, bit for bit."""
    (tmp_path / "in").mkdir()
    for number in range(16):
        (tmp_path / "in" / f"{number}.png").write_bytes(drawn(number))
    options: dict[str, object] = {
        "inputs": [str(tmp_path / "in")],
        "preset": "vq-tiny",
        "overrides": {"architecture.channels": 16, "architecture.z_channels": 16, "quantizer.codebook_size": 64}
        | {"quantizer.entropy_weight": 0.1},
        "resolution": 32,
        "steps": 12,
        "batch_size": 8,
        "val_fraction": 0.2,
        "threads": 1,
        "recipe": "gan",
        "gan_start": 0.3,
        "gan_adaptive": True,
        "discriminator_channels": 8,
        "lecam": 0.01,
        "ema": 0.9,
        "log_every": 4,
        "lr": 1e-3,
    }
    two = together(tmp_path / "two", 2, options | {"accumulate": 2})
    assert two["size"] == 2
    assert two["different"] == []
    assert two["counted"] == 12 * 8 * 16  # codes of both processes
    one = together(tmp_path / "one", 1, options)
    assert one["counted"] == two["counted"]
    # the same pictures in each step; only what is drawn for dead codes and the order of sums differ
    assert abs(float(str(one["val_psnr"])) - float(str(two["val_psnr"]))) < 1.5
