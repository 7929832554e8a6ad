"""`event_based` reads what has one token a row, finds the stream that was asked for, or says no."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from mmfuse.features.config import MidiPreprocessing
from mmfuse.features.errors import ConfigError, MissingError
from mmfuse.features.midi_tokens import TOKENIZATIONS, midi_tokens_spec, tokens_entry
from mmfuse.features.spec import Entry, StreamSpec
from mmfuse.features.store import open_store
from mmfuse.features.writer import StoreWriter
from mmfuse.trainer.encoder_config import EventBasedConfig, MusicTransformerConfig
from mmfuse.trainer.encoders import build_encoder
from mmfuse.trainer.load import _matching


def encode(encoder, values):
    x = torch.from_numpy(values)[None].float()
    mask = torch.ones(x.shape[:2], dtype=torch.bool)
    return encoder(x, mask, x[..., 1]).pooled_BD


@pytest.mark.parametrize("config", [EventBasedConfig, MusicTransformerConfig])
@pytest.mark.parametrize("name", TOKENIZATIONS)
def test_every_tokenization_is_read(in_bars, name, config):
    chosen = TOKENIZATIONS[name]()
    encoder = build_encoder(config(hidden_dim=16), midi_tokens_spec(chosen)).eval()
    low, high = (
        encode(encoder, tokens_entry(in_bars((0, 1, pitch), (5, 1, pitch)), chosen).values)
        for pitch in (40, 80)
    )
    assert low.shape == (1, 16)
    assert not torch.allclose(low, high)


def test_remi_pitches_have_a_class_and_an_octave_and_nothing_else_has():
    chosen = TOKENIZATIONS["remi"]()
    encoder = build_encoder(EventBasedConfig(hidden_dim=16), midi_tokens_spec(chosen)).events
    first = chosen.first["pitch"]
    pitched = torch.zeros(chosen.vocabulary_size, dtype=torch.bool)
    pitched[first : first + 128] = True
    assert torch.equal(encoder.class_V > 0, pitched)
    assert torch.equal(encoder.octave_V > 0, pitched)
    assert encoder.pitch_V[first + 60] == 60


def test_fields_are_those_of_the_columns_in_whatever_order_a_store_names_them():
    spec = midi_tokens_spec(TOKENIZATIONS["compound"](programs=True, tempos=True))
    stored = StreamSpec.from_json(json.loads(json.dumps(spec.to_json(), sort_keys=True)))
    assert list(stored.params["vocabulary"]["sizes"]) != list(spec.params["vocabulary"]["sizes"])
    for one in (spec, stored):
        events = build_encoder(EventBasedConfig(hidden_dim=16), one).events
        assert events.names == list(spec.fields[: len(events.names)])


def test_an_unknown_tokenization_is_refused_with_what_to_type():
    spec = replace(midi_tokens_spec(), params={"vocabulary": {"name": "runes"}})
    with pytest.raises(ConfigError, match="can.t read .runes.*tokenization = .midi_like"):
        build_encoder(EventBasedConfig(), spec)


def test_a_store_with_several_tokenizations_gives_the_one_that_is_asked_for(tmp_path):
    with StoreWriter(tmp_path / "s.zarr") as writer:
        for kind in (TOKENIZATIONS["midi_like"], TOKENIZATIONS["remi"]):
            spec = midi_tokens_spec(kind())
            writer.stream(spec).append("a", bytes(32), Entry(np.ones((1, 4))))
    store = open_store(tmp_path / "s.zarr")
    for name in ("midi_like", "remi"):
        section = MidiPreprocessing(tokenization=name)
        stream = _matching(store, "midi_tokens", section, "mmfeat run x.toml")
        assert stream.spec.params["vocabulary"]["name"] == name
    for wanted, message in (
        ({"tokenization": "compound"}, "tokenization = '.*', the configuration says 'compound'"),
        ({"tokenization": "remi", "programs": True}, "mmfeat run x.toml"),
    ):
        with pytest.raises(MissingError, match=message):
            _matching(store, "midi_tokens", MidiPreprocessing(**wanted), "mmfeat run x.toml")
