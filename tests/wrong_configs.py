"""A right run configuration, what makes it wrong, and what is to be said of that."""

RIGHT = """name = "right"
[data]
corpus = "corpus"
store = "s.zarr"
[preprocessing.audio]
encoder = "logmel"
rate_hz = 16000
[preprocessing.midi]
tokenization = "midi_like"
[model.audio_encoder]
type = "mel_cnn"
hidden_dim = 64
[model.midi_encoder]
type = "event_based"
attention_heads = 4
[model.fusion]
type = "late"
dropout = 0.4
[train]
epochs = 30
lr = 2e-3
balance = "none"
[eval]
missing_shares = [0.0, 0.5]
"""
WRONG = {
    "an unknown key": (
        "epochs = 30", "epohcs = 30", "train.epohcs = 30: no such key; did you mean 'epochs'?"),
    "a key of nothing": (
        "[eval]", "[eval]\ncolour = 3", "eval.colour = 3: no such key; choose from: {eval}"),
    "a key of another type": (
        "dropout = 0.4", "rank = 4",
        'model.fusion.rank = 4: no such key here; it belongs to type = "low_rank"'),
    "an unknown section": ("[train]", "[trian]", "[trian]: no such key; did you mean 'train'?"),
    "an unknown modality": (
        "[model.midi_encoder]", "[model.mide_encoder]",
        "[model.mide_encoder]: no such key; did you mean 'midi_encoder'?"),
    "text for a number": (
        "epochs = 30", 'epochs = "30"', "train.epochs = '30': expected a whole number"),
    "a half for a whole number": (
        "epochs = 30", "epochs = 2.5", "train.epochs = 2.5: expected a whole number"),
    "true for a number": ("lr = 2e-3", "lr = true", "train.lr = true: expected a number"),
    "a list for a number": (
        "lr = 2e-3", "lr = [1e-3, 2e-3]", "train.lr = [0.001, 0.002]: expected a number"),
    "infinity": ("lr = 2e-3", "lr = inf", "train.lr = inf: expected a finite number"),
    "a number for text": (
        'encoder = "logmel"', "encoder = 1",
        'preprocessing.audio.encoder = 1: expected text in quotes, such as "this"'),
    "a number for a path": (
        'store = "s.zarr"', "store = 1",
        'data.store = 1: expected a path in quotes, such as "this"'),
    "a number for a list": (
        "missing_shares = [0.0, 0.5]", "missing_shares = 0.5",
        "eval.missing_shares = 0.5: expected a list in brackets, such as [1, 2]"),
    "a value for a section": (
        '[model.fusion]\ntype = "late"\ndropout = 0.4', "[model]\nfusion = 3",
        "model.fusion = 3: expected a section of keys and values"),
    "too small": (
        "rate_hz = 16000", "rate_hz = 16",
        "preprocessing.audio.rate_hz = 16: expected 4000 or more"),
    "a dropout of everything": (
        "dropout = 0.4", "dropout = 1", "model.fusion.dropout = 1: expected less than 1.0"),
    "a negative weight": (
        "lr = 2e-3", "unimodal_weight = -0.5",
        "train.unimodal_weight = -0.5: expected 0.0 or more"),
    "a value too large in a list": (
        "[0.0, 0.5]", "[0.0, 1.5]", "eval.missing_shares[1] = 1.5: expected 1.0 or less"),
    "a misspelt choice": (
        'balance = "none"', 'schedule = "cosin"',
        "train.schedule = 'cosin': did you mean 'cosine'?"),
    "no such choice": (
        'balance = "none"', 'schedule = "step"',
        "train.schedule = 'step': expected one of: cosine, linear, constant"),
    "a misspelt tokenization": (
        '"midi_like"', '"rmei"',
        "preprocessing.midi.tokenization = 'rmei': no tokenizer named 'rmei'; did you "
        "mean 'remi'?"),
    "a misspelt encoder": (
        '"mel_cnn"', '"mel_cn"',
        "model.audio_encoder.type = 'mel_cn': no such type; did you mean 'mel_cnn'?"),
    "an encoder of another modality": (
        '"mel_cnn"', '"text"',
        "model.audio_encoder.type = 'text': no such type; choose from: "
        "audio_statistics, clap, mel_cnn, wav2vec2"),
    "an encoder without a type": (
        'type = "mel_cnn"\n', "",
        "model.audio_encoder.type is missing; choose from: "
        "audio_statistics, clap, mel_cnn, wav2vec2"),
    "a misspelt fusion": (
        '"late"', '"laet"',
        "model.fusion.type = 'laet': no fusion named 'laet'; did you mean 'late'?"),
    "a fusion without a type": (
        'type = "late"\n', "",
        "[model.fusion]: type is missing; choose from: bottleneck, cross_modal, early, gated, "
        "late, low_rank"),
    "a misspelt balance": (
        'balance = "none"', 'balance = "ogm-ge"',
        "train.balance = 'ogm-ge': did you mean 'ogm_ge'?"),
    "a wrong value in a section that may be a word": (
        'balance = "none"', 'balance = {type = "mmpareto", gamma = 0}',
        "train.balance.gamma = 0: expected more than 0.0"),
    "a name that leaves its folder": (
        'name = "right"', 'name = "../right"',
        "name = '../right': expected letters, digits, and . _ - after the first"),
    "no name": (
        'name = "right"\n', "", "name is missing; add it, as the files in configs/ have it"),
    "no model": (
        RIGHT[RIGHT.index("[model"):RIGHT.index("[train]")], "",
        "section [model] is missing; add it, as the files in configs/ have it"),
    "no encoder": (
        RIGHT[RIGHT.index("[model"):RIGHT.index("[model.fusion]")], "",
        "[model]: no encoder; add [model.text_encoder], audio_encoder or midi_encoder"),
    "heads that do not divide the width": (
        "attention_heads = 4", "attention_heads = 5",
        "model.midi_encoder.hidden_dim = 64: expected an even number that attention_heads = 5 "
        "divides, such as 70"),
    "an odd width": (
        "hidden_dim = 64", "hidden_dim = 65",
        "model.audio_encoder.hidden_dim = 65: expected an even number, such as 66"),
    "a warm-up longer than the training": (
        "epochs = 30", "epochs = 3\nmodality_dropout_warmup = 5",
        "train.modality_dropout_warmup = 5: expected no more than train.epochs = 3"),
    "balance of one modality": (
        '[model.midi_encoder]\ntype = "event_based"\nattention_heads = 4\n', "",
        "train.balance = 'mmpareto': needs two encoders or more; add one, or set it to \"none\"",
        ("--set", "train.balance=mmpareto")),
    "a choice that excludes another": (
        'tokenization = "midi_like"', 'tokenization = "midi_like"\nprograms = true',
        "preprocessing.midi.programs = true: midi_like has no use for it; set tokenization = "
        '"remi" or "compound", or take it out'),
    "one key by two names": (
        "rate_hz = 16000", "rate_hz = 16000\nsample_rate = 8000",
        "preprocessing.audio.sample_rate = 8000: is rate_hz under another name, which is also "
        "given; take one out"),
    "several faults": (
        "[eval]", "[eval]\nece_bins = 0\nbootstrap = 1",
        "eval.bootstrap = 1: expected 100 or more (and 1 more)"),
}  # fmt: skip
SYNTAX = {
    "text without quotes": (
        'type = "late"', "type = late",
        "line 17, column 8: type = late: no such value; text stands in quotes, decimals as 0.5"),
    "a key without a value": (
        "epochs = 30", "epochs", "line 20, column 7: epochs: expected key = value"),
    "a key twice": (
        "epochs = 30", "epochs = 30\nepochs = 40",
        "line 21, column 12: epochs = 40: this key is given twice; take one out"),
    "a modality twice": (
        "[model.fusion]", '[model.audio_encoder]\ntype = "clap"\n[model.fusion]',
        "line 16, column 21: [model.audio_encoder]: this section is given twice; join them"),
    "an open quote": (
        'name = "right"', 'name = "right',
        "line 1, column 14: name = \"right: text without its closing quote, or a control "
        "character"),
    "an open list": (
        "missing_shares = [0.0, 0.5]", "missing_shares = [0.0, 0.5",
        "end of document: a list or table without its closing bracket"),
}  # fmt: skip
TYPED = {
    "an unknown key": ("train.epohcs=3", "train.epohcs = 3: no such key; did you mean 'epochs'?"),
    "a section": ("train=3", "train = 3: expected a section of keys and values"),
    "text": ("train.lr=fast", "train.lr = 'fast': expected a number"),
    "a list": ("train.epochs=[1, 2]", "train.epochs = [1, 2]: expected a whole number"),
    "another name": ("model.fusion.strategy=laet",
                     "model.fusion.strategy = 'laet': no fusion named 'laet'; did you mean "
                     "'late'?"),
}  # fmt: skip
