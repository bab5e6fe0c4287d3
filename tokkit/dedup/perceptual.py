"""What a picture looks like, in 64 bits.

The hash is pHash (Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010) as the library
ImageHash computes it: gray, 32 x 32, cosine transform, and of the 8 x 8 lowest frequencies which lie above their median.
Scaling, recompression and small changes of brightness leave most bits as they are.

Exactly half of the frequencies lie above the median, unless several are equal to it. They are for flat pictures: one colour, a
ramp, a few lines. Such a hash says next to nothing (all flat pictures are alike by it), so it is not used.
"""

from __future__ import annotations

from importlib.metadata import version

import numpy as np
from PIL import Image

from tokkit.errors import UsageError
from tokkit.media.transforms import flatten

NO_HASH = 0  # a picture that has none; no hash of a picture is 0
_WHITE = (255, 255, 255)


def require_imagehash() -> None:
    """Import the library.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import imagehash  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"--dedup near-images needs the package ImageHash ({error}); install it with: pip install 'tokkit[dedup]'"
        ) from None


def hash_versions() -> dict[str, str]:
    """The versions of what computes the hash: another one might find other pictures alike."""
    return {package: version(package) for package in ("imagehash", "scipy")}


def picture_hash(image: Image.Image) -> int:
    """The 64-bit pHash of an RGB or RGBA picture (transparency on white), or ``NO_HASH`` for one too flat to have one."""
    import imagehash

    bits = np.asarray(imagehash.phash(flatten(image, _WHITE)).hash, dtype=np.bool_)
    if 2 * int(bits.sum()) != bits.size:
        return NO_HASH
    return int.from_bytes(np.packbits(bits.ravel()).tobytes(), "big")
