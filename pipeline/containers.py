"""Bytes of the sample corpus' files: standard MIDI, WAV, Broadcast WAV, FLAC, Ogg Vorbis.

The same input gives the same bytes: libsndfile numbers Ogg streams by the clock, so pages get a
fixed serial number and a new checksum.
"""

import io
import struct
import zlib

import mido
import numpy as np
import soundfile
from numpy.typing import NDArray

from mmfuse.features.clock import Timecode
from mmfuse.pipeline.compose import Performance

SUFFIXES = {"wav": ".wav", "bwf": ".wav", "flac": ".flac", "ogg": ".ogg"}
OFFSET_RATES = {"24": 24, "25": 25, "29.97df": 29.97, "30": 30}  # what FF 54 can express
_BLOCK = 4096  # frames; long Vorbis writes overflow the stack of libsndfile
_SERIAL = 0x6D6D6675
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def midi_bytes(performance: Performance, origin: Timecode | None) -> bytes:
    """A format 1 file: a track of tempi and metre, then one track for each instrument.

    `origin` is written as an SMPTE offset (FF 54) at tick 0; its rate must be in `OFFSET_RATES`.
    """
    conductor: list[tuple[int, mido.MetaMessage]] = []
    if origin is not None:
        hours, minutes, seconds, frames = origin.label.replace(";", ":").split(":")
        offset = mido.MetaMessage(
            "smpte_offset",
            frame_rate=OFFSET_RATES[origin.rate.name],
            hours=int(hours),
            minutes=int(minutes),
            seconds=int(seconds),
            frames=int(frames),
        )
        conductor.append((0, offset))
    metre = mido.MetaMessage("time_signature", numerator=performance.beats_per_bar, denominator=4)
    conductor.append((0, metre))
    conductor += [
        (tick, mido.MetaMessage("set_tempo", tempo=tempo)) for tick, tempo in performance.tempi
    ]
    file = mido.MidiFile(type=1, ticks_per_beat=performance.division)
    file.tracks.append(_track(conductor))
    for track in performance.tracks:
        events = [(0, mido.MetaMessage("track_name", name=track.name))]
        events.append(
            (0, mido.Message("program_change", channel=track.channel, program=track.program))
        )
        played = []
        for note in track.notes:
            key = {"channel": track.channel, "note": note.pitch}
            on = mido.Message("note_on", velocity=note.velocity, **key)
            played.append((note.onset_tick, on))
            played.append((note.offset_tick, mido.Message("note_off", velocity=64, **key)))
        played.sort(key=lambda event: (event[0], event[1].type == "note_on", event[1].note))
        file.tracks.append(_track(events + played))
    buffer = io.BytesIO()
    file.save(file=buffer)
    return buffer.getvalue()


def audio_bytes(
    samples: NDArray[np.float32], rate_hz: int, container: str, start: Timecode
) -> bytes:
    """An audio file of 16 bits, or of Vorbis.

    Args:
        samples: (N,) or (N, C), in [-1, 1].
        rate_hz: sample rate.
        container: a key of `SUFFIXES`.
        start: SMPTE time of the first sample; only `bwf` writes it into the file.
    """
    buffer = io.BytesIO()
    channels = 1 if samples.ndim == 1 else samples.shape[1]
    name = {"bwf": "WAV"}.get(container, container.upper())
    subtype = "VORBIS" if container == "ogg" else "PCM_16"
    with soundfile.SoundFile(buffer, "w", rate_hz, channels, subtype, format=name) as file:
        for first in range(0, len(samples), _BLOCK):
            file.write(samples[first : first + _BLOCK])
    written = buffer.getvalue()
    if container == "ogg":
        return _renumber(written)
    return _broadcast(written, rate_hz, start) if container == "bwf" else written


def time_reference(start: Timecode, rate_hz: int) -> int:
    """Samples since midnight, as `bext` counts them: exact seconds, rounded once, half to even."""
    return round(start.seconds * rate_hz)


def _track(events: list[tuple[int, mido.Message]]) -> mido.MidiTrack:
    """Events with absolute ticks, in order, as a track of deltas."""
    track, now = mido.MidiTrack(), 0
    for tick, message in events:
        track.append(message.copy(time=tick - now))
        now = tick
    track.append(mido.MetaMessage("end_of_track"))
    return track


def _broadcast(wav: bytes, rate_hz: int, start: Timecode) -> bytes:
    """Put a `bext` chunk, version 1, in front of the other chunks. Source: EBU Tech 3285."""
    reference = time_reference(start, rate_hz)
    bext = struct.pack(
        "<256s32s32s10s8sIIH254x",
        b"synthesized by mmfeat sample",
        b"mmfuse",
        b"",
        b"",  # no date: nothing was recorded
        start.label[:8].encode(),
        reference & 0xFFFFFFFF,
        reference >> 32,
        1,
    )
    chunks = b"bext" + struct.pack("<I", len(bext)) + bext + wav[12:]
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks


def _renumber(ogg: bytes) -> bytes:
    """Give every page our serial number and its checksum. Source: RFC 3533, section 6."""
    out, at = bytearray(ogg), 0
    while at < len(out):
        assert out[at : at + 4] == b"OggS"
        segments = out[at + 26]
        end = at + 27 + segments + sum(out[at + 27 : at + 27 + segments])
        struct.pack_into("<I", out, at + 14, _SERIAL)
        struct.pack_into("<I", out, at + 22, 0)
        struct.pack_into("<I", out, at + 22, _page_crc(bytes(out[at:end])))
        at = end
    return bytes(out)


def _page_crc(page: bytes) -> int:
    """CRC-32, polynomial 0x04c11db7, neither reflected nor inverted: zlib's on mirrored bits."""
    mirrored = zlib.crc32(page.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int.from_bytes(mirrored.to_bytes(4, "little").translate(_REVERSED), "big")
