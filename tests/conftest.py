"""What every test shares: one torch thread, and the real corpora where they lie beside the project."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, here and in every process a test starts


# What is started in the background of a script has Ctrl-C ignored, and hands that on to what it starts; a signal that is
# handled here is not ignored there.
signal.signal(signal.SIGINT, signal.default_int_handler)

# No test fails for the time it takes: the first call of a kernel may have to compile it. Continuous integration looks at the
# same examples each time, so that it fails for a change and not by chance; elsewhere hypothesis looks at new ones.
settings.register_profile("any", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "any")


@pytest.fixture(autouse=True, scope="session")
def _one_torch_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _shared(folder: str) -> Path:
    root = os.environ.get("TOKKIT_SHARED")
    if not root:
        pytest.skip("TOKKIT_SHARED does not name the real corpora")
    path = Path(root).resolve() / folder
    assert path.is_dir(), f"TOKKIT_SHARED is set, but {path} is not a folder"
    return path


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real corpora (``$TOKKIT_SHARED/data``); the test skips without them."""
    return _shared("data")


@pytest.fixture(scope="session")
def shared_golden() -> Path:
    """Reference implementations' answers (``$TOKKIT_SHARED/golden``); the test skips without them."""
    return _shared("golden")
