"""Text to tokens: a byte-level BPE trained on a corpus' own training texts.

Conventions: token 0 is padding and never comes out of a text, not even out of one that says
"[PAD]". Every other text becomes tokens and comes back from them, as NFC; nothing is unknown. The
trained tokenizer is one JSON text, saved with the store; its blake3 is in the stream's spec, so
another vocabulary is another stream.

Source: Sennrich et al. 2016 (BPE); the byte alphabet of GPT-2; Hugging Face `tokenizers`.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from blake3 import blake3

from mmfuse.features import layout
from mmfuse.features.errors import ClipError, ConfigError
from mmfuse.features.spec import Entry, StreamSpec, Timing

PAD = 0
_PADDING = "[PAD]"
_MIN_VOCABULARY = 257  # padding and the 256 bytes
_MAX_CHARACTERS = 10_000_000


@dataclass(frozen=True, slots=True)
class TextParams:
    """What changes the tokens, beside the trained vocabulary itself."""

    vocab_size: int = 2000
    max_tokens: int = 1024  # tokens kept of one clip; the rest is counted in the entry's note
    lowercase: bool = False
    normalizer: str = "NFC"

    def __post_init__(self) -> None:
        if not _MIN_VOCABULARY <= self.vocab_size <= 1 << 16:
            raise ConfigError(f"text: vocab_size {self.vocab_size}; it is 257 to 65536")
        if self.max_tokens < 1:
            raise ConfigError("text: max_tokens is at least 1")
        if self.normalizer != "NFC":
            raise ConfigError(f"text: normalizer {self.normalizer!r}; there is only NFC")


def train_bpe(texts: Iterable[str], vocab_size: int = 2000, *, lowercase: bool = False) -> str:
    """Train the vocabulary; returns the tokenizer as JSON.

    The same texts give the same JSON to the byte, in whatever order and process. Texts that are
    not valid (they fail as clips) are left out.

    Raises:
        ConfigError: vocab_size below 257 or above 65536.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    TextParams(vocab_size=vocab_size)
    tokenizer = Tokenizer(models.BPE())
    nfc = normalizers.NFC()
    # NFC again after lower case, which can take letters and marks apart
    steps = [nfc, normalizers.Lowercase(), nfc] if lowercase else [nfc]
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[_PADDING],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sorted(text for text in texts if not text_fault(text)), trainer)
    return str(tokenizer.to_str())


def text_tokens_spec(params: TextParams, tokenizer_json: str) -> StreamSpec:
    """The `text_tokens` stream: uint16 (n,), without times."""
    return StreamSpec(
        name="text_tokens",
        modality="text",
        item=(),
        dtype="uint16",
        params={
            **asdict(params),
            "kind": "byte-level BPE",
            "pad": PAD,
            "vocabulary_blake3": _digest(tokenizer_json),
        },
        timing=Timing("none"),
    )


class TextTokenizer:
    """Turns one clip's text into its `text_tokens` entry.

    Raises:
        ConfigError: the JSON is no tokenizer, or one of another size or case than the parameters.
    """

    def __init__(self, params: TextParams, tokenizer_json: str) -> None:
        from tokenizers import Tokenizer

        try:
            lowercase = '"Lowercase"' in json.dumps(json.loads(tokenizer_json)["normalizer"])
            self._tokenizer = Tokenizer.from_str(tokenizer_json)
        except Exception as error:  # the library raises plain Exception
            raise ConfigError(f"text: this is no tokenizer's JSON ({error})") from None
        size, pad = self._tokenizer.get_vocab_size(), self._tokenizer.token_to_id(_PADDING)
        if size > params.vocab_size or pad != PAD or lowercase != params.lowercase:
            raise ConfigError(
                f"text: the tokenizer has {size} tokens, padding {pad}, lowercase {lowercase}; the "
                f"parameters say {params.vocab_size}, {PAD}, {params.lowercase}; train it again"
            )
        self._tokenizer.encode_special_tokens = True  # "[PAD]" in a text is five letters
        self.params = params
        self.spec = text_tokens_spec(params, tokenizer_json)

    def __call__(self, text: str) -> Entry:
        """Tokens of a text: values (n,) uint16, n <= max_tokens; the empty text has none.

        Raises:
            ClipError: `bad_text` (lone surrogate, NUL, or beyond ten million characters).
        """
        if fault := text_fault(text):
            raise ClipError("bad_text", f"text with {fault}")
        ids = self._tokenizer.encode(text).ids
        values = np.array(ids[: self.params.max_tokens], np.uint16)
        left_out = len(ids) - len(values)
        return Entry(
            values,
            windows=((Fraction(0), len(values)),),
            note=f"text_tokens: {left_out} of {len(ids)} tokens left out" if left_out else "",
        )

    def decode(self, tokens: Iterable[int]) -> str:
        """Tokens back to text; padding is skipped."""
        return str(self._tokenizer.decode([int(token) for token in tokens if token != PAD]))


def stored_tokenizer(root: Path, spec: StreamSpec) -> str | None:
    """JSON of the tokenizer that made a `text_tokens` stream; None where a store lacks it."""
    for path in sorted((root / layout.META).glob("tokenizer-*.json")):
        layout.require_regular(root, path)
        tokenizer_json = path.read_text(encoding="utf-8")
        if _digest(tokenizer_json) == spec.params.get("vocabulary_blake3"):
            return tokenizer_json
    return None


def _digest(tokenizer_json: str) -> str:
    return blake3(tokenizer_json.encode()).hexdigest()


def text_fault(text: str) -> str:
    """What is wrong with a text; "" if nothing."""
    if len(text) > _MAX_CHARACTERS:
        return f"{len(text)} characters, more than {_MAX_CHARACTERS}"
    if "\0" in text:
        return f"a NUL at character {text.index(chr(0))}"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"a lone surrogate at character {error.start}; read the file as UTF-8"
    return ""
