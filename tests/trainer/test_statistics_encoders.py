"""Encoders of descriptors and n-grams: against their formulas, and what must not reach them."""

import math
from collections import Counter

import numpy as np
import pytest
import torch

from mmfuse.features.audio_statistics import audio_statistics_spec
from mmfuse.features.errors import ConfigError, MissingError
from mmfuse.features.note_statistics import note_statistics_spec
from mmfuse.trainer.config import load_run_config
from mmfuse.trainer.encoder_config import (
    AudioStatisticsConfig,
    NgramBagConfig,
    NoteStatisticsConfig,
)
from mmfuse.trainer.encoders import build_encoder
from mmfuse.trainer.load import load_dataset
from mmfuse.trainer.loop import better
from mmfuse.trainer.run import build_model, train
from mmfuse.trainer.statistics_encoders import NgramBagEncoder, StatisticsEncoder

NGRAMS = """
[model.text_encoder]
type = "ngram_bag"
hidden_dim = 16
ngrams = [1, 2]
buckets = 512
"""


def test_descriptors_are_standardised_and_mapped():
    torch.manual_seed(0)
    encoder = StatisticsEncoder(5, 4, dropout=0.5).eval()
    rows_NF = torch.randn(50, 5) * torch.tensor([1.0, 10, 0.1, 1, 1]) + 3
    rows_NF[:, 4] = 7.0  # never varies
    encoder.standardise(rows_NF.mean(0), rows_NF.std(0, correction=0))
    x_BTF = rows_NF[:6, None].clone()
    x_BTF[0, 0, 0] = 1e6  # far out
    x_BTF[1, 0, 4] = 9.0
    found = encoder(x_BTF, torch.ones(6, 1).bool(), torch.full((6, 1), torch.nan)).pooled_BD
    rows = rows_NF.numpy().astype(np.float64)
    z = (x_BTF[:, 0].numpy() - rows.mean(0)) / np.where(rows.std(0) > 1e-5, rows.std(0), np.inf)
    weight, bias = (p.detach().numpy() for p in (encoder.project.weight, encoder.project.bias))
    wanted = np.clip(z, -3, 3) @ weight.T + bias
    assert found.detach().numpy() == pytest.approx(wanted, abs=1e-4)


def literal(encoder, tokens, shares):
    """TF-IDF of a list of ids by a loop over its n-grams."""
    counts = Counter()
    for n in range(encoder.ngrams[0], encoder.ngrams[1] + 1):
        for first in range(len(tokens) - n + 1):
            number = 0
            for token in tokens[first : first + n]:
                number = (number * 1_000_003 + token + 1) % 2_147_483_647
            counts[number * 48_271 % 2_147_483_647 % encoder.buckets] += 1
    weights = np.zeros(encoder.buckets)
    for bucket, count in counts.items():
        if shares[bucket] > 0:
            weights[bucket] = math.log(1 + count) * (1 - math.log(shares[bucket]))
    return weights / max(math.sqrt((weights**2).sum() / max((weights > 0).sum(), 1)), 1e-12)


@pytest.mark.parametrize("ngrams", [(1, 1), (1, 4), (2, 3)])
def test_ngrams_are_counted_hashed_and_weighed(ngrams):
    rng = np.random.default_rng(0)
    encoder = NgramBagEncoder(8, ngrams, buckets=256, dropout=0.0).eval()
    shares = np.where(rng.random(256) < 0.3, 0, rng.random(256))
    encoder.weigh(torch.from_numpy(shares).float())
    texts = [rng.integers(1, 20, n).tolist() for n in (30, 7, 2, 1)]
    x_BT, mask_BT = torch.full((4, 33), 9), torch.zeros(4, 33).bool()
    for b, text in enumerate(texts):
        x_BT[b, : len(text)], mask_BT[b, : len(text)] = torch.tensor(text), True
    found = encoder.weights(x_BT, mask_BT).numpy()
    for b, text in enumerate(texts):
        assert found[b] == pytest.approx(literal(encoder, text, shares), abs=1e-4)


def both():
    """(encoder, rows, mask) of both kinds; the last clip has nothing, and rubbish in its place."""
    torch.manual_seed(1)
    mask_BT = torch.tensor([[True, True, False], [True, False, False], [False] * 3])
    statistics = StatisticsEncoder(6, 4, dropout=0.0)
    rows_BTF = torch.randn(3, 3, 6).masked_fill(~mask_BT[..., None], torch.nan)
    tokens_BT = torch.randint(1, 250, (3, 3)).masked_fill(~mask_BT, -7)
    return [
        (statistics, rows_BTF, mask_BT),
        (NgramBagEncoder(4, (1, 3), 128, dropout=0.0), tokens_BT, mask_BT),
    ]


@pytest.mark.parametrize("kind", [0, 1])
def test_what_is_masked_changes_neither_output_nor_gradient(kind):
    encoder, x, mask_BT = both()[kind]
    times_BT = torch.full(mask_BT.shape, torch.nan)

    def ask(x, mask_BT):
        encoder.zero_grad()
        out = encoder(x, mask_BT, times_BT[:, :1].expand(mask_BT.shape))
        out.pooled_BD[:2].square().sum().backward()
        return out, encoder.project.weight.grad.clone()

    out, gradient = ask(x, mask_BT)
    other = torch.where(mask_BT if x.ndim == 2 else mask_BT[..., None], x, torch.ones_like(x) * 5)
    changed, its = ask(torch.cat([other, other[:, :1]], dim=1), torch.cat([mask_BT, mask_BT[:, :0],
                       torch.zeros(3, 1).bool()], dim=1))  # fmt: skip
    assert torch.isfinite(gradient).all()
    assert gradient.abs().sum() > 0
    assert torch.equal(out.mask_BT[:, 0], torch.tensor([True, True, False]))
    assert torch.isfinite(out.pooled_BD).all()
    torch.testing.assert_close(changed.pooled_BD, out.pooled_BD)
    torch.testing.assert_close(its, gradient)


def test_the_sections_build_encoders_of_their_streams(specs):
    for config, spec in (
        (AudioStatisticsConfig(), audio_statistics_spec()),
        (NoteStatisticsConfig(), note_statistics_spec()),
    ):
        encoder = build_encoder(config, spec)
        assert encoder.project.in_features == spec.item[0]
    assert build_encoder(NgramBagConfig(buckets=128), specs["text"]).buckets == 128


def with_ngrams(planted):
    text = planted.config.read_text()
    start, end = text.index("[model.text_encoder]"), text.index("[model.fusion]")
    planted.config.write_text(text[:start] + NGRAMS + text[end:])
    return planted


def test_a_bag_of_ngrams_learns_words_and_trains_again_to_the_bit(plant, tmp_path):
    planted = with_ngrams(
        plant(lambda bits: str(bits["text"]), (120, 40, 80), ("text",), epochs=12)
    )
    first = train(planted.config, ("train.best_by='loss'",), tmp_path / "a")
    again = train(planted.config, ("train.best_by='loss'",), tmp_path / "b")
    assert first["test"]["accuracy"] > 0.9
    assert first["test"]["nll"] == again["test"]["nll"]


def test_the_weights_of_ngrams_come_from_train_clips_alone(plant):
    planted = with_ngrams(plant(modalities=("text",)))
    data = planted.data()
    encoder = build_model(planted.run_config(), data).encoders["text"]
    texts = [data[int(clip)]["text"].tolist() for clip in data.clips_of("train")]
    having = np.mean([literal(encoder, text, np.ones(512)) > 0 for text in texts], axis=0)
    wanted = np.where(having > 0, 1 - np.log(np.maximum(having, 1e-12)), 0)
    assert encoder.idf_F.numpy() == pytest.approx(wanted, abs=1e-5)


def test_missing_statistics_name_the_command_and_what_to_set(plant):
    planted = plant(modalities=("midi",))
    text = planted.config.read_text()
    start, end = text.index("[model.midi_encoder]"), text.index("[model.fusion]")
    section = '[model.midi_encoder]\ntype = "note_statistics"\n'
    planted.config.write_text(text[:start] + section + text[end:])
    with pytest.raises(
        MissingError, match=r"mmfeat run .* --set preprocessing.midi.statistics=true"
    ):
        load_dataset(planted.run_config(), planted.config)


def test_lengths_of_ngrams_rise(plant):
    planted = with_ngrams(plant(modalities=("text",)))
    planted.config.write_text(planted.config.read_text().replace("[1, 2]", "[3, 2]"))
    with pytest.raises(ConfigError, match=r"the shortest and the longest length, such as \[1, 4\]"):
        load_run_config(planted.config)


def test_the_best_epoch_is_by_score_or_by_loss(plant):
    task = plant(modalities=("text",)).data().task
    record = {"val_macro_f1": 0.7, "val_loss": 1.0}
    assert better(record, {"macro_f1": 0.6, "loss": 0.9}, task)
    assert not better(record, {"macro_f1": 0.6, "loss": 0.9}, task, "loss")
    assert better(record, {"macro_f1": 0.8, "loss": 1.1}, task, "loss")
    assert not better(record, {"macro_f1": 0.8, "loss": 1.1}, task)
    assert better(record, {}, task, "loss")
