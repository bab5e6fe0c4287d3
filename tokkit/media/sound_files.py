"""What the bytes of a sound file say of themselves, read without decoding: their format, and whether the file is all there.

libsndfile decodes a file that was cut and says nothing: of a WAV it takes what there is, an Ogg or MP3 it plays up to the cut.
So the containers are looked at here, by their own words:

* RIFF (WAV) and AIFF say how long their data is, NIST SPHERE how many samples there are; a length that stands for "not known
  yet" (a stream's 0xFFFFFFFF and its like) says nothing;
* the last page of an Ogg is complete and marked as the last (RFC 3533);
* an MP3 says only by a Xing, Info or VBRI frame how many frames follow. Without one nothing tells that it was cut.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from tokkit.errors import ItemError

# A length of the data from here on was written before anybody knew it (4 GiB, 2 GiB, or these less a header).
UNKNOWN_LENGTH = 0x7FFF_0000
SEARCHED = 1 << 16  # bytes in which an MP3's first frame is looked for, behind its tags

_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}  # by the bits of the version
_KBPS_1 = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)  # layer III of MPEG 1
_KBPS_2 = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)  # and of MPEG 2 and 2.5


@dataclass(frozen=True, slots=True)
class SoundFile:
    """Where the sound is in a file, and what is promised of it.

    Attributes:
        format: ``WAV``, ``FLAC``, ``OGG``, ``MP3``, ``AIFF``, ``AU`` or ``NIST``.
        start: bytes before it that no decoder needs to see.
        length_known: whether the decoder's count of samples is a promise of the file, and not an estimate.
        frame: samples (of a channel) by which that promise may be off.
    """

    format: str
    start: int = 0
    length_known: bool = True
    frame: int = 0


def look_at(data: bytes) -> SoundFile:
    """What kind of sound file it is.

    Raises:
        ItemError: ``audio-unrecognised``, ``audio-truncated`` where its own words promise more than there is, or
            ``audio-damaged``.
    """
    if data[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64") and data[8:12] == b"WAVE":
        _check_chunks(data, ">" if data[:4] == b"RIFX" else "<", b"data")
        return SoundFile("WAV")
    if data[:4] == b"fLaC":
        return SoundFile("FLAC")
    if data[:4] == b"OggS":
        _check_last_page(data)
        return SoundFile("OGG")
    if data[:4] == b"FORM" and data[8:12] in (b"AIFF", b"AIFC"):
        _check_chunks(data, ">", b"SSND")
        return SoundFile("AIFF")
    if data[:4] == b".snd":
        return SoundFile("AU")
    if data[:8] == b"NIST_1A\n":
        _check_sphere(data)
        return SoundFile("NIST")
    return _mp3(data)


def _check_chunks(data: bytes, order: str, wanted: bytes) -> None:
    """That the chunk with the samples is as long as it says."""
    position = 12
    while position + 8 <= len(data):
        name, length = data[position : position + 4], struct.unpack_from(order + "I", data, position + 4)[0]
        position += 8
        if name == wanted:
            if len(data) - position < length < UNKNOWN_LENGTH:
                raise _truncated(f"{length:,} bytes of samples by its header", len(data) - position)
            return
        position += length + length % 2


def _check_last_page(data: bytes) -> None:
    at = data.rfind(b"OggS")
    header = data[at : at + 27]
    if len(header) < 27 or len(data) < at + 27 + header[26]:
        raise ItemError("audio-truncated", f"an Ogg that ends in the header of a page ({len(data):,} bytes)")
    length = 27 + header[26] + sum(data[at + 27 : at + 27 + header[26]])
    if len(data) < at + length:
        raise _truncated(f"an Ogg whose last page has {length:,} bytes", len(data) - at)
    if not header[5] & 4:
        raise ItemError("audio-truncated", f"an Ogg that ends without its last page ({len(data):,} bytes)")


def _check_sphere(data: bytes) -> None:
    words = [line.split() for line in data[:1024].split(b"\n")]
    fields = {line[0]: line[2] for line in words if len(line) == 3}
    try:
        head = int(data[8:16])
        count, width = int(fields[b"sample_count"]), int(fields[b"sample_n_bytes"])
        length = count * width * int(fields.get(b"channel_count", b"1"))
    except (KeyError, ValueError):
        return  # the decoder will say what is wrong with it
    if b"," not in fields.get(b"sample_coding", b"") and len(data) - head < length:
        raise _truncated(f"{length:,} bytes of samples by its header", len(data) - head)


def _truncated(promised: str, found: int) -> ItemError:
    return ItemError("audio-truncated", f"{promised}, and {found:,} are there")


# ---- MP3


def _mp3(data: bytes) -> SoundFile:
    """An MP3 by its first two frames, which may stand behind a tag, zeros, or the rest of a frame that was cut."""
    tagged = data[:3] == b"ID3" and len(data) >= 10
    start = _tag(data) if tagged else 0
    first = _first_frame(data, start)
    if first is None:
        if tagged:
            raise ItemError("audio-damaged", f"an ID3 tag and no frame of an MP3 behind it ({len(data):,} bytes)")
        raise ItemError("audio-unrecognised", f"no sound file of a known format; begins with {data[:16]!r}")
    mpeg1, samples = data[first + 1] & 0x18 == 0x18, 1152 if data[first + 1] & 0x18 == 0x18 else 576
    mono = data[first + 3] >> 6 == 3
    side = (17 if mono else 32) if mpeg1 else (9 if mono else 17)
    told = data[first + 4 + side : first + 8 + side] in (b"Xing", b"Info") or data[first + 36 : first + 40] == b"VBRI"
    # The frame that counts the others may be counted itself, and the last may be empty.
    return SoundFile("MP3", first if first > start or not tagged else 0, told, 2 * samples)


def _tag(data: bytes) -> int:
    """Length of an ID3v2 tag: 7 bits in each of four bytes."""
    size = 0
    for byte in data[6:10]:
        size = size << 7 | byte & 0x7F
    return 10 + size


def _first_frame(data: bytes, start: int) -> int | None:
    """Where the first frame begins: one with another of its kind right behind it, or with the end of the file."""
    at = data.find(b"\xff", start, start + SEARCHED)
    while at >= 0:
        length = _frame_length(data, at)
        if length:
            behind = at + length
            if behind >= len(data) or (_frame_length(data, behind) and (data[at + 1] ^ data[behind + 1]) & 0xFE == 0):
                return at
        at = data.find(b"\xff", at + 1, start + SEARCHED)
    return None


def _frame_length(data: bytes, at: int) -> int:
    """Bytes of the frame of layer III whose header stands at ``at``; 0 where none does."""
    if at + 4 > len(data) or data[at] != 0xFF or data[at + 1] & 0xE6 != 0xE2:
        return 0
    version, rate, kbps = data[at + 1] >> 3 & 3, data[at + 2] >> 2 & 3, data[at + 2] >> 4
    if version == 1 or rate == 3 or kbps in (0, 15):
        return 0
    table, factor = (_KBPS_1, 144_000) if version == 3 else (_KBPS_2, 72_000)
    return factor * table[kbps] // _RATES[version][rate] + (data[at + 2] >> 1 & 1)
