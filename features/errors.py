"""Every error that mmfuse raises on purpose.

    MMFuseError               what a person did or gave; one line, then an exit code
    ├── ConfigError           2  a command, configuration or manifest says something impossible
    ├── ClipError             3  one clip is bad; recorded in the failures table, never stops a run
    │   ├── DecodeError          its audio
    │   ├── MidiError            its MIDI
    │   └── AlignError           its times
    ├── StoreError            4  a store is damaged, lies, or does not hold what was asked for
    ├── LockedError           5  somebody else is writing
    ├── MissingError          6  a model, a stream or an optional package is not there
    └── WorkerError           1  processes that should work die before they begin

A message says what was given, what was expected, and what to type next.
"""


class MMFuseError(Exception):
    """A mistake that a person can mend; `exit_code` is what the command ends with."""

    exit_code = 2


class ConfigError(MMFuseError):
    """A command line, a configuration or a manifest that can't be carried out."""


class ClipError(MMFuseError):
    """One clip can't be used. `reason` is a short stable word for counting, e.g. `non_finite`."""

    exit_code = 3

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class DecodeError(ClipError):
    """Audio bytes that do not become samples."""


class MidiError(ClipError):
    """MIDI bytes that do not become notes."""


class AlignError(ClipError):
    """Times that can't be put on one clock."""


class StoreError(MMFuseError):
    """A feature store that is damaged, or is not what it says."""

    exit_code = 4


class LockedError(MMFuseError):
    """Another process writes here."""

    exit_code = 5


class MissingError(MMFuseError):
    """A model, a stream or an optional package is not there."""

    exit_code = 6


class WorkerError(MMFuseError):
    """Worker processes die before they begin."""

    exit_code = 1
