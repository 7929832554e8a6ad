"""Text to vectors: frozen encoders of transformers, and CLAP's text branch.

Conventions: a text goes through the model alone, at its own length. Nothing is padded and nothing
masked, so no text's numbers depend on its neighbours. The tokenizer is the model's `tokenizer.json`
as it lies there: its sha256 says all about the tokens, whatever versions are installed. A special
token spelled in a text is letters. What is beyond the model's maximum is cut and counted in the
entry's note. A text without any token has no rows.

Rows: every token with `pooling = "none"`, the model's special tokens among them; one row, their
mean (`mean`) or the first (`cls`), otherwise. CLAP's branch gives its projection, one row of unit
length in the space of its audio. Rows have no time.

Source: Reimers and Gurevych 2019, arXiv 1908.10084 (pooling); the models of transformers.
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from mmfuse.features.clap import clap_files, clap_weights
from mmfuse.features.devices import exact_sums
from mmfuse.features.encoders import CPU, Compute
from mmfuse.features.errors import ClipError, ConfigError, MissingError
from mmfuse.features.models import (
    ModelFiles,
    architecture,
    find_model,
    load_weights,
    read_settings,
    seed_weights,
    sha256_of,
)
from mmfuse.features.spec import Entry, StreamSpec, Timing
from mmfuse.features.text import text_fault

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer

TYPES = ("albert", "bert", "camembert", "deberta-v2", "distilbert", "electra", "modernbert",
         "mpnet", "roberta", "xlm-roberta")  # fmt: skip
# positions of these begin behind the padding's number
_OFFSET_POSITIONS = ("camembert", "clap_text_model", "mpnet", "roberta", "xlm-roberta")
_TOKENIZER = "tokenizer.json"


@dataclass(frozen=True, slots=True)
class TextModelParams:
    """What changes the numbers.

    `model` is a folder or a hub id with `@revision`. `encoder` is `transformer`, or `clap` for the
    text branch of a CLAP checkpoint, which pools by itself. `max_tokens` cuts below the model's own
    maximum. `random_weights` seeds the architecture without its weights. `threads` split sums, so
    the number shows in the last bits: it is fixed here, not by the machine.
    """

    model: str
    encoder: Literal["transformer", "clap"] = "transformer"
    pooling: Literal["none", "mean", "cls"] = "mean"
    max_tokens: int = 1024
    random_weights: int | None = None
    threads: int = 2


@dataclass(frozen=True, slots=True)
class Tokens:
    """A text's (T,) ids, and how many more it had."""

    ids_T: NDArray[np.int64]
    left_out: int = 0


class TextModel:
    """One model: its spec at once, tokenizer and weights when first called.

    Raises:
        ConfigError: the model is refused.
        MissingError: there is no such model on this machine, or it has no tokenizer.json.
    """

    def __init__(self, params: TextModelParams, compute: Compute = CPU) -> None:
        self.params, self._compute = params, compute
        self._files, self.config = _found(params)
        self.tokenizer_sha256 = _tokenizer_sha256(self._files)
        self.limit = min(params.max_tokens, _maximum(self._files, self.config))
        self.spec = self._spec()
        self._tokenizer: Tokenizer | None = None
        self._model: torch.nn.Module | None = None

    def __call__(self, text: str) -> Entry:
        """Rows of a text: (T, D) or (1, D) float16; a text without tokens has none.

        Raises:
            ClipError: `bad_text` (lone surrogate, NUL, or beyond ten million characters), or
                `non_finite` in float16.
        """
        tokens = self.tokens(text)
        return self.entry(tokens, self.encode(tokens.ids_T[None])[0] if len(tokens.ids_T) else None)

    def tokens(self, text: str) -> Tokens:
        """What the model sees of a text, the special tokens among it; nothing of an empty one.

        Raises:
            ClipError: `bad_text`, as above.
        """
        if fault := text_fault(text):
            raise ClipError("bad_text", f"text with {fault}")
        tokenizer = self._tokens_loaded()
        special = tokenizer.num_special_tokens_to_add(False)
        encoding = tokenizer.encode(text)
        left_out = sum(len(part.ids) - special for part in encoding.overflowing)
        ids = encoding.ids if len(encoding.ids) > special else []
        return Tokens(np.array(ids, np.int64), left_out)

    def encode(self, ids_BT: NDArray[np.int64]) -> NDArray[np.float32]:
        """Texts of one number of tokens, (B, T) -> (B, T or 1, D) float32.

        On the CPU they go one at a time, where a batch gains little and could move a bit.
        """
        import torch

        model = self._loaded()
        assert not model.training
        torch.set_num_threads(self.params.threads)
        step = 1 if self._compute.device == "cpu" else len(ids_BT)
        parts = []
        for batch_BT in torch.from_numpy(ids_BT).split(step):  # type: ignore[no-untyped-call]
            with torch.inference_mode():
                found = self._pooled(model(batch_BT.to(self._compute.device)))
            parts.append(found.cpu().numpy())
        return np.concatenate(parts)

    def entry(self, tokens: Tokens, values: NDArray[np.float32] | None) -> Entry:
        """Rows of one text as they are stored; None where it has no tokens.

        Raises:
            ClipError: `non_finite` in float16.
        """
        if values is None:
            values = np.empty((0, *self.spec.item), np.float32)
        with np.errstate(over="ignore"):
            stored = values.astype(np.float16)
        if not np.isfinite(stored).all():
            raise ClipError("non_finite", f"{self.spec.name}: values that float16 can't hold")
        total, note = len(tokens.ids_T) + tokens.left_out, ""
        if tokens.left_out:
            note = f"{self.spec.name}: {tokens.left_out} of {total} tokens left out"
        return Entry(stored, windows=((Fraction(0), len(stored)),), note=note)

    def _pooled(self, found: Any) -> "torch.Tensor":
        import torch

        if self.params.encoder == "clap":
            row_BD: torch.Tensor = torch.nn.functional.normalize(found.text_embeds, dim=-1)
            return row_BD[:, None]
        states_BTD: torch.Tensor = found.last_hidden_state
        if self.params.pooling == "mean":
            return states_BTD.mean(dim=1, keepdim=True)
        return states_BTD[:, :1] if self.params.pooling == "cls" else states_BTD

    def _loaded(self) -> "torch.nn.Module":
        from transformers import AutoModel, ClapTextModelWithProjection

        if self._model is None:
            clap, seed = self.params.encoder == "clap", self.params.random_weights
            kind: Any = ClapTextModelWithProjection if clap else AutoModel
            if seed is not None:
                make = kind if clap else AutoModel.from_config
                self._model = seed_weights(make, self.config, seed)
            else:
                spare = () if clap else ("pooler.",)  # `cls` is the first row, not what it becomes
                self._model = load_weights(kind, self._files, self.config, spare)
            exact_sums()
            self._model.to(self._compute.device)
        return self._model

    def _tokens_loaded(self) -> "Tokenizer":
        from tokenizers import Tokenizer

        if self._tokenizer is None:
            try:
                tokenizer = Tokenizer.from_file(str(self._files.folder / _TOKENIZER))
            except Exception as error:  # the library raises plain Exception
                raise ConfigError(
                    f"model {self.params.model}: {_TOKENIZER} is no tokenizer's JSON ({error})"
                ) from None
            size, room = tokenizer.get_vocab_size(), int(self.config.vocab_size)
            if size > room:
                raise ConfigError(
                    f"model {self.params.model}: {_TOKENIZER} has {size} tokens, the model {room}; "
                    "take the file that belongs to it"
                )
            special = tokenizer.num_special_tokens_to_add(False)
            if self.limit <= special:
                raise ConfigError(
                    f"text: {self.limit} tokens are no more than the {special} special ones; set "
                    "max_tokens higher"
                )
            tokenizer.no_padding()
            tokenizer.enable_truncation(self.limit)
            tokenizer.encode_special_tokens = True
            self._tokenizer = tokenizer
        return self._tokenizer

    def _spec(self) -> StreamSpec:
        clap = self.params.encoder == "clap"
        name = "clap_text" if clap else "text_embedding"
        return StreamSpec(
            name=name if self.params.random_weights is None else f"{name}_random",
            modality="text",
            item=(int(self.config.projection_dim if clap else self.config.hidden_size),),
            dtype="float16",
            params={
                "model": self.params.model,
                "model_type": self.config.model_type,
                "architecture": architecture(self.config),
                **clap_weights(self._files, self.params.random_weights),
                "tokenizer_sha256": self.tokenizer_sha256,
                **({"length": "unit"} if clap else {"pooling": self.params.pooling}),
                "most_tokens": self.limit,
                "threads": self.params.threads,
            },
            timing=Timing("none"),
        )


def _found(params: TextModelParams) -> tuple[ModelFiles, Any]:
    """Files and architecture; a text encoder needs a folder even for random weights."""
    from transformers import AutoConfig

    if not params.model:
        raise ConfigError(
            "a text encoder needs a model; name one with --model FOLDER or --model ID@REVISION, "
            'or keep the one that needs none: encoder = "bpe"'
        )
    if params.encoder == "clap":
        files, whole = clap_files(params.model, params.random_weights)
        if files is None:
            raise ConfigError(
                f"{params.model} has no tokenizer; random weights of a text encoder need a folder "
                f"with config.json and {_TOKENIZER}"
            )
        return files, whole.text_config
    files = find_model(params.model, TYPES, weights=params.random_weights is None)
    kind = AutoConfig.for_model(str(files.config["model_type"])).__class__
    try:
        return files, kind.from_dict(dict(files.config))
    except Exception as error:  # transformers check types by an exception of their own
        first = str(error).splitlines()[0]
        raise ConfigError(f"model {params.model}: config.json can't be ({first})") from None


def _tokenizer_sha256(files: ModelFiles) -> str:
    path = files.folder / _TOKENIZER
    if "auto_map" in read_settings(files, "tokenizer_config.json"):
        raise ConfigError(
            f"model {files.name} brings a tokenizer with code of its own (auto_map), which mmfuse "
            "never runs; choose a model without"
        )
    if not path.is_file():
        raise MissingError(
            f"model {files.name} has no {_TOKENIZER}; write one beside it: "
            "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        )
    return sha256_of(path)


def _maximum(files: ModelFiles, config: Any) -> int:
    """Tokens that the model takes: what its files say, and the positions it has."""
    positions = int(config.max_position_embeddings)
    if config.model_type in _OFFSET_POSITIONS:
        positions -= int(config.pad_token_id) + 1
    said = [
        read_settings(files, "tokenizer_config.json").get("model_max_length"),
        read_settings(files, "sentence_bert_config.json").get("max_seq_length"),
    ]
    return min([positions, *(int(v) for v in said if isinstance(v, int | float) and v < positions)])
