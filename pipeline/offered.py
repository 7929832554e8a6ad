"""Encoders, tokenizers and augmentations that there are, and whether one keeps its promise."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from mmfuse.features import plugins
from mmfuse.features.config import FeatureConfig
from mmfuse.features.conformance import Finding, check_encoder
from mmfuse.features.encoders import Compute, build_encoder, own_encoders
from mmfuse.features.midi_tokens import build_tokenization

View = tuple[dict[str, Any], list[str]]

TOKENIZERS = {
    "midi_like": "Events in real time, steps of 10 ms.",
    "remi": "Bar, position, pitch, velocity, duration: a token each.",
    "compound": "The same, one row of fields a note.",
}
AUGMENTATIONS = {  # keys of the configuration
    "time_stretch": "Longer or shorter, audio and MIDI together.",
    "pitch_shift": "Higher or lower, audio and MIDI together.",
    "noise_snr_db": "White noise in the audio.",
    "gain_db": "Louder or quieter audio.",
    "velocity": "Velocities of notes.",
    "quantize": "Onsets of notes towards the grid.",
    "jitter_s": "Onsets of notes off their place.",
}


def listed(kind: str) -> View:
    """All that there are of a kind: ours, and those of other packages."""
    own = {"encoder": own_encoders(), "tokenizer": TOKENIZERS, "augmentation": AUGMENTATIONS}[kind]
    found = plugins.offers(kind, own)
    width = max(len(offer.name) for offer in found)
    lines = [f"{offer.name:<{width}}  {offer.about} ({offer.package})" for offer in found]
    return {f"{kind}s": [asdict(offer) for offer in found]}, lines


def checked_encoder(settings: FeatureConfig, device: Compute) -> View:
    """What the conformance kit finds about the encoder of a configuration."""
    audio = settings.preprocessing.audio
    assert audio is not None
    other = None if device.device == "cpu" else device.device
    findings = check_encoder(lambda compute: build_encoder(audio, compute), device=other)
    return _told(audio.encoder, findings)


def checked_tokenizer(settings: FeatureConfig) -> View:
    """What the conformance kit finds about the tokenizer of a configuration."""
    from mmfuse.features.plugin_checks import check_tokenizer

    midi = settings.preprocessing.midi
    assert midi is not None
    findings = check_tokenizer(lambda: build_tokenization(midi), midi.max_events)
    return _told(midi.tokenization, findings)


def checked_augmentation(name: str, options: Mapping[str, Any]) -> View:
    """What the conformance kit finds about an augmentation of another package.

    Raises:
        ConfigError: there is none, or it refuses the options.
    """
    from mmfuse.features.augment_plugins import loaded
    from mmfuse.features.plugin_checks import check_augmentation

    return _told(name, check_augmentation(loaded(name), options))


def _told(name: str, findings: Sequence[Finding]) -> View:
    marks = {True: "ok  ", False: "FAIL", None: "skip"}
    lines = [f"{marks[f.ok]} {f.check}" + (f" ({f.detail})" if f.detail else "") for f in findings]
    failed = sum(f.ok is False for f in findings)
    lines.append(f"{name}: {'kept' if not failed else f'{failed} broken'}")
    return {"ok": not failed, "findings": [asdict(f) for f in findings]}, lines
