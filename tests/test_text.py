"""Text becomes tokens of a vocabulary that its own corpus trains, and comes back from them."""

import json
import os
import random
import subprocess
import sys
import unicodedata
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmfuse.features.errors import ClipError, ConfigError
from mmfuse.features.text import PAD, TextParams, TextTokenizer, text_tokens_spec, train_bpe

LIEDER = Path(__file__).parents[2] / "shared" / "data" / "lieder8"
TEXTS = [
    "Leise flehen meine Lieder durch die Nacht zu dir",
    "In den stillen Hain hernieder, Liebchen, komm zu mir",
    "Les roses d'Ispahan dans leur gaine de mousse",
    "Когда б не смутное влеченье чего-то жаждущей души",
    "春はあけぼの。やうやう白くなりゆく山ぎは",
    "Sing we and chant it, while love doth grant it",
] * 5
TRAINED = train_bpe(TEXTS, 350)
PARAMS = TextParams(vocab_size=350)
TOKENIZER = TextTokenizer(PARAMS, TRAINED)


def test_text_becomes_few_tokens_and_comes_back():
    entry = TOKENIZER(TEXTS[0])
    assert entry.values.dtype == TOKENIZER.spec.dtype == "uint16"
    assert entry.values.ndim == 1
    assert 0 < len(entry.values) < len(TEXTS[0]) / 2
    assert TOKENIZER.decode(entry.values) == TEXTS[0]
    assert (entry.origin_s, entry.note) == (0, "")
    assert entry.windows == ((Fraction(0), len(entry.values)),)


def test_the_empty_text_has_no_tokens():
    entry = TOKENIZER("")
    assert entry.values.shape == (0,)
    assert entry.values.dtype == np.uint16
    assert TOKENIZER.decode([]) == ""


def test_training_depends_on_neither_order_nor_run():
    shuffled = list(TEXTS)
    random.Random(1).shuffle(shuffled)
    assert train_bpe(iter(shuffled), 350) == TRAINED == train_bpe(TEXTS, 350)


def test_training_gives_the_same_bytes_in_another_process():
    code = (
        "import sys, json; from mmfuse.features.text import train_bpe; "
        "sys.stdout.buffer.write(train_bpe(json.load(sys.stdin), 350).encode())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(TEXTS[::-1]).encode(),
        env={**os.environ, "PYTHONHASHSEED": "77", "RAYON_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
    )
    assert done.stdout.decode() == TRAINED


def test_a_vocabulary_of_bytes_needs_no_training_text():
    tokenizer = TextTokenizer(TextParams(vocab_size=257), train_bpe([], 257))
    entry = tokenizer("né")
    assert len(entry.values) == 3  # bytes of UTF-8
    assert tokenizer.decode(entry.values) == "né"


characters = st.characters(exclude_categories=["Cs"], exclude_characters="\0")


@settings(max_examples=300, deadline=None)
@given(st.text(characters) | st.text(st.sampled_from("[PAD] aàβß\n\tﬁ\u0301春🎵")))
def test_any_text_comes_back_as_nfc_and_never_holds_padding(text):
    values = TOKENIZER(text).values
    assert TOKENIZER.decode(values) == unicodedata.normalize("NFC", text)
    assert PAD not in values


@pytest.mark.parametrize("text", [*TEXTS[:6], "عربي וגם עברית", "हिन्दी ไทย 한국어", "👩‍👩‍👧 𝄞"])
def test_all_scripts_come_back(text):
    assert TOKENIZER.decode(TOKENIZER(text).values) == text


def test_the_letters_of_the_padding_token_are_letters():
    texts = ["[PAD]", "a[PAD][PAD]b [PAD]"]
    for tokenizer in (TOKENIZER, TextTokenizer(PARAMS, train_bpe(texts * 50 + TEXTS, 350))):
        for text in texts:
            values = tokenizer(text).values
            assert PAD not in values
            assert tokenizer.decode(values) == text


def test_padding_is_skipped_on_the_way_back():
    values = TOKENIZER("durch die Nacht").values
    padded = np.concatenate([[PAD, PAD], values, [PAD] * 9])
    assert TOKENIZER.decode(padded) == "durch die Nacht"


def test_two_spellings_of_one_letter_are_one():
    assert TOKENIZER("e\u0301").values.tolist() == TOKENIZER("\u00e9").values.tolist()


def test_lowercase_is_a_parameter_of_training_and_use():
    params = TextParams(vocab_size=350, lowercase=True)
    tokenizer = TextTokenizer(params, train_bpe(TEXTS, 350, lowercase=True))
    assert tokenizer.decode(tokenizer("LIEBCHEN, Komm É").values) == "liebchen, komm é"
    assert TOKENIZER.decode(TOKENIZER("LIEBCHEN").values) == "LIEBCHEN"
    with pytest.raises(ConfigError, match="lowercase True.*train it again"):
        TextTokenizer(PARAMS, train_bpe(TEXTS, 350, lowercase=True))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ab\0cd", "a NUL at character 2"),
        ("abc\ud800", "a lone surrogate at character 3; read the file as UTF-8"),
        ("\udc80", "a lone surrogate at character 0"),
        ("a" * 10_000_001, "more than 10000000"),
    ],
    ids=["nul", "surrogate", "half a byte", "too long"],
)
def test_texts_that_can_not_be_are_refused(text, words):
    with pytest.raises(ClipError, match=words) as caught:
        TOKENIZER(text)
    assert caught.value.reason == "bad_text"
    assert train_bpe([*TEXTS, text], 350) == TRAINED  # and training leaves them out


def test_what_is_beyond_max_tokens_is_counted():
    short = TextTokenizer(TextParams(vocab_size=350, max_tokens=3), TRAINED)
    whole = TOKENIZER(TEXTS[1]).values
    entry = short(TEXTS[1])
    assert np.array_equal(entry.values, whole[:3])
    assert entry.note == f"text_tokens: {len(whole) - 3} of {len(whole)} tokens left out"
    assert entry.windows == ((Fraction(0), 3),)
    exact = TextTokenizer(TextParams(vocab_size=350, max_tokens=len(whole)), TRAINED)
    assert exact(TEXTS[1]).note == ""


def test_the_spec_names_the_vocabulary():
    other = train_bpe(TEXTS, 300)
    spec = text_tokens_spec(PARAMS, TRAINED)
    assert spec == TOKENIZER.spec
    assert spec.params["pad"] == PAD == 0
    assert spec.timing.kind == "none"
    assert spec.fingerprint != text_tokens_spec(PARAMS, other).fingerprint
    assert spec.fingerprint == text_tokens_spec(TextParams(350), TRAINED).fingerprint


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"normalizer": null}', "ab"])
def test_what_is_no_tokenizer_is_refused(text):
    with pytest.raises(ConfigError, match="no tokenizer's JSON"):
        TextTokenizer(PARAMS, text)


def test_a_tokenizer_larger_than_its_parameters_is_refused():
    with pytest.raises(
        ConfigError, match="the tokenizer has 350 tokens.*parameters say 300, 0, False"
    ):
        TextTokenizer(TextParams(vocab_size=300), TRAINED)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"vocab_size": 256}, "257 to 65536"),
        ({"vocab_size": 65_537}, "257 to 65536"),
        ({"max_tokens": 0}, "at least 1"),
        ({"normalizer": "NFKC"}, "only NFC"),
    ],
)
def test_impossible_parameters_are_refused(wrong, words):
    with pytest.raises(ConfigError, match=words):
        TextParams(**wrong)
    if "vocab_size" in wrong:
        with pytest.raises(ConfigError, match=words):
            train_bpe(TEXTS, wrong["vocab_size"])


@pytest.mark.skipif(not LIEDER.exists(), reason="lieder8 corpus is not beside the project")
def test_real_song_texts_come_back_word_for_word():
    import pyarrow.parquet as pq

    texts = pq.read_table(LIEDER / "manifest.parquet", columns=["text"])["text"].to_pylist()
    trained = train_bpe(texts, 2000)
    assert trained == train_bpe(reversed(texts), 2000)
    tokenizer = TextTokenizer(TextParams(), trained)
    for text in texts:
        assert tokenizer.decode(tokenizer(text).values) == unicodedata.normalize("NFC", text)
