"""Which views of which clips are made, and what each of them differs in.

A view's draw is known before its audio is decoded, so that what is there already is skipped. Of the
clip's MIDI only the pitches are looked at, to draw semitones that its notes can move by exactly,
whatever is made in this run: audio and MIDI of a view agree though two runs made them.
"""

from dataclasses import dataclass

from blake3 import blake3

from mmfuse.features import augment_plugins
from mmfuse.features.augment import VERSION, VIEW_0, Draw, draw, touches
from mmfuse.features.clip import Clip
from mmfuse.features.config import Augmentations, Preprocessing
from mmfuse.features.errors import ClipError, ConfigError
from mmfuse.features.note_augment import fitting_semitones

_NOTHING = Augmentations()


@dataclass(frozen=True, slots=True)
class Views:
    """The views that a configuration asks for: 1 to `count` of each clip in `splits`."""

    count: int = 0
    splits: frozenset[str] = frozenset()
    seed: int = 0
    policy: Augmentations = _NOTHING

    @classmethod
    def of(cls, wanted: Preprocessing) -> "Views":
        """What `[preprocessing]` says.

        Raises:
            ConfigError: views are wanted, and nothing is augmented.
        """
        augment_plugins.check(wanted)
        policy = wanted.augmentations()
        made = ("audio" if wanted.audio else "", "midi" if wanted.midi else "")
        if wanted.views and not any(touches(policy, modality) for modality in made):
            raise ConfigError(
                f"preprocessing.views = {wanted.views}, but nothing that is made is augmented; add "
                "[preprocessing.audio.augmentations], such as time_stretch = [0.9, 1.1]"
            )
        return cls(wanted.views, frozenset(wanted.view_splits), wanted.view_seed, policy)

    def draws(self, clip: Clip) -> tuple[Draw, ...]:
        """What each view of a clip differs in, view 0 first."""
        count = self.count if clip.split in self.splits else 0
        fitting = self._fitting(clip) if count else None
        return tuple(
            draw(self.policy, self.seed, clip.id, view, fitting) for view in range(count + 1)
        )

    def touches(self, modality: str) -> bool:
        """Whether views differ in a modality; if not, it has view 0 alone."""
        return touches(self.policy, modality)

    def _fitting(self, clip: Clip) -> range | None:
        """Semitones for all notes; None where the clip has none, or they can't be read."""
        if clip.midi is None or not self.policy.pitch_shift:
            return None
        from mmfuse.features.midi_file import read_midi
        from mmfuse.features.notes import notes_entry

        try:
            notes_values = notes_entry(read_midi(clip.midi.read())).values
        except ClipError:
            return None
        return fitting_semitones(notes_values, self.policy.pitch_shift)


NO_VIEWS = Views()


def content_of(content: bytes, drawn: Draw) -> bytes:
    """Hash of all that a view's entry depends on; of view 0, that of the clip.

    The draw stands here and not in the stream's spec: all views are one stream, view 0 has the
    fingerprint that it has without views, and another policy makes new those that it changes.
    """
    if drawn == VIEW_0:
        return content
    return blake3(content + f"|view {VERSION}|{drawn.to_json()}".encode()).digest()
