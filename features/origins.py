"""Where a clip's MIDI lies on its clock: the starts of audio and MIDI, and whose word counts.

Conventions: a start is a time of day in exact seconds. The manifest comes first, then the file:
`bext` or iXML for audio, FF 54 for MIDI. FF 54 knows neither 23.976 nor 29.97 non-drop, for which
sequencers write 24 and 30, so its digits are read at the clip's rate where that is known better.
Nothing is guessed: what had to be assumed is in the note, and one start alone is no start. An
estimate by ear (`mmfeat align --refine`) counts where starts are unknown, and is said to be one.
"""

from contextlib import suppress
from dataclasses import dataclass, replace
from fractions import Fraction

from mmfuse.features.clip import Clip
from mmfuse.features.clock import FrameRate, Timecode, wrap_s
from mmfuse.features.errors import AlignError, ClipError
from mmfuse.features.timecode import AudioOrigin, read_audio_origin

_FAR_S = 600  # files whose starts lie farther apart hardly count from one clock


@dataclass(frozen=True, slots=True)
class Alignment:
    """MIDI start minus audio start in seconds, and where that was taken from.

    `sources` is "manifest", "bext and FF 54" and the like; where there is none, `zero` says why the
    two are aligned at zero. `doubts` are for a person to look at.
    """

    offset_s: Fraction = Fraction(0)
    sources: str = ""
    zero: str = ""
    doubts: tuple[str, ...] = ()

    @property
    def note(self) -> str:
        """What the store's index says of it; nothing where the manifest told both starts."""
        by = f"aligned by {self.sources}" if self.sources not in ("", "manifest") else ""
        return "; ".join(part for part in (self.zero, by, *self.doubts) if part)


@dataclass(frozen=True, slots=True)
class _Start:
    seconds: Fraction
    source: str
    doubts: tuple[str, ...] = ()


def midi_offset_s(
    clip: Clip, audio: AudioOrigin | None = None, midi: Timecode | None = None
) -> tuple[Fraction, str]:
    """MIDI start minus audio start in seconds, exact, and a note where that was not told; `align`.

    Add it to a MIDI time to have the time on the clip's timeline (0 = first audio sample).
    """
    alignment = align(clip, audio, midi)
    return alignment.offset_s, alignment.note


def align(clip: Clip, audio: AudioOrigin | None = None, midi: Timecode | None = None) -> Alignment:
    """Find MIDI start minus audio start.

    Times of day are wrapped into half a day of the clip's rate: the manifest's, else that of iXML,
    else that of FF 54. Without audio, or with one start at most, the offset is zero. Where the
    audio is a stretch of a recording, all this is of the recording, and an estimate of the stretch.

    Args:
        clip: what the manifest says, which wins.
        audio: what the audio file says.
        midi: what the MIDI file says (FF 54), at the rate that is written there.

    Raises:
        AlignError: a rate, label or number of the manifest can't be read.
    """
    if clip.audio is None:
        return Alignment()
    found = _align_recording(clip, audio, midi)
    return replace(found, offset_s=found.offset_s - clip.audio.start_s)


def _align_recording(clip: Clip, audio: AudioOrigin | None, midi: Timecode | None) -> Alignment:
    told = clip.origins
    rate = FrameRate.parse(told.rate) if told.rate else None
    known = rate or (audio.frame_rate if audio else None)
    told_audio_s = _told_s(told.audio_smpte, told.audio_start_s, rate)
    told_midi_s = _told_s(told.midi_smpte, told.midi_start_s, rate)
    in_audio, in_midi = _audio_start(audio, rate), _midi_start(midi, known)
    doubts = _conflict(told_audio_s, in_audio, rate) + _conflict(told_midi_s, in_midi, rate)
    start = in_audio if told_audio_s is None else _Start(told_audio_s, "manifest")
    midi_start = in_midi if told_midi_s is None else _Start(told_midi_s, "manifest")
    if start is None or midi_start is None:
        if start is midi_start:
            return _unknown(clip, "no time origins", ())
        missing = "audio" if start is None else "MIDI"
        return _unknown(clip, f"no time origin of the {missing}", doubts)
    sources = {start.source, midi_start.source}
    if "manifest" in sources and len(sources) > 1 and rate is None:
        mend = ("fill smpte_rate if both starts are times of day",)
        return _unknown(clip, "one start in plain seconds, the other a time of day", mend)
    doubts += start.doubts + midi_start.doubts
    offset_s = midi_start.seconds - start.seconds
    if sources == {"manifest"}:
        return Alignment(wrap_s(offset_s, rate.day_s) if rate else offset_s, "manifest", "", doubts)
    day = known or (midi.rate if midi else None)
    assert day is not None  # whoever gave the MIDI's start gave a rate
    offset_s = wrap_s(offset_s, day.day_s)
    if abs(offset_s) > _FAR_S:
        doubts += (f"the MIDI starts {float(offset_s):.0f} s from the audio; check both starts",)
    return Alignment(offset_s, f"{start.source} and {midi_start.source}", "", doubts)


def _unknown(clip: Clip, why: str, doubts: tuple[str, ...]) -> Alignment:
    """The clip's estimate where it has one, else zero; either way said to be so."""
    if clip.estimate is None:
        return Alignment(zero=f"{why}: aligned at zero", doubts=doubts)
    source = f"an estimate with confidence {clip.estimate.confidence:.2f}, {why}"
    before_s = clip.audio.start_s if clip.audio else Fraction(0)
    return Alignment(clip.estimate.offset_s + before_s, source, "", doubts)


def needs_files(clip: Clip) -> bool:
    """Whether the manifest leaves a start open, so that the files are asked."""
    return clip.audio is not None and not (clip.origins.audio and clip.origins.midi)


def audio_origin(clip: Clip) -> tuple[AudioOrigin | None, str]:
    """What the headers of the audio file say of its start, and a note where they can't be read.

    A broken audio file is the audio's own failure and does not take the MIDI with it.
    """
    if clip.audio is None:
        return None, ""
    try:
        with clip.audio.open() as file:
            return read_audio_origin(file), ""
    except ClipError as error:
        return None, f"the start of the audio can't be read from its file ({error.reason})"


def _audio_start(audio: AudioOrigin | None, rate: FrameRate | None) -> _Start | None:
    if audio is None:
        return None
    doubts = audio.warnings
    if rate and audio.frame_rate not in (None, rate):
        doubts += (f"iXML says rate {audio.frame_rate.name}, the manifest {rate.name}",)
    return _Start(audio.seconds, audio.source, doubts)


def _midi_start(midi: Timecode | None, known: FrameRate | None) -> _Start | None:
    """FF 54 with its digits read at the known rate; at half of it above 30, as it is written."""
    if midi is None:
        return None
    own, doubts = midi.rate, tuple[str, ...]()
    if known is None:
        if own.fps in (24, 30):
            slow = FrameRate(own.fps * Fraction(1000, 1001)).name
            doubts = (f"FF 54 says rate {own.name}, and can't say {slow}; fill smpte_rate",)
        return _Start(midi.seconds, "FF 54", doubts)
    counted = known if known.nominal <= 30 else FrameRate(known.fps / 2, known.drop)
    if counted.nominal == own.nominal:
        with suppress(AlignError):  # no such label there: it was counted as FF 54 says
            midi = midi.read_at(counted)
    if midi.rate != counted or own.drop != counted.drop:
        doubts = (f"FF 54 says rate {own.name}, the clip has {known.name}",)
    return _Start(midi.seconds, "FF 54", doubts)


def _conflict(
    told_s: Fraction | None, file: _Start | None, rate: FrameRate | None
) -> tuple[str, ...]:
    """What to say where manifest and file are more than half a frame apart."""
    if told_s is None or file is None or rate is None:
        return ()
    apart_s = wrap_s(file.seconds - told_s, rate.day_s)
    if abs(apart_s) * rate.fps <= Fraction(1, 2):
        return ()
    return (f"{file.source} is {float(apart_s):+.3f} s from the manifest, which counts",)


def _told_s(label: str | None, seconds: str | None, rate: FrameRate | None) -> Fraction | None:
    if label:
        if rate is None:
            raise AlignError(
                "no_rate", f"timecode {label!r} has no frame rate; fill the column smpte_rate"
            )
        return Timecode.parse(label, rate).seconds
    if not seconds:
        return None
    try:
        return Fraction(seconds)
    except (ValueError, ZeroDivisionError):
        raise AlignError("bad_start", f"{seconds!r} is no number of seconds") from None
