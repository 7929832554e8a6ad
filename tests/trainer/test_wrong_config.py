"""A wrong configuration ends both commands with one line: file, key, value, and what to write."""

import subprocess
import sys

import pytest
from wrong_configs import RIGHT, SYNTAX, TYPED, WRONG

from mmfuse.pipeline.cli import main as mmfeat
from mmfuse.trainer.cli import main as mmtrain
from mmfuse.trainer.config import EvalConfig


def said(program, monkeypatch, capsys, *words):
    """Exit code of a command, and what it says in one line."""
    monkeypatch.setattr(sys, "argv", [program.__module__, *map(str, words)])
    with pytest.raises(SystemExit) as stopped:
        program()
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1, captured.err
    return stopped.value.code, captured.err.strip()


@pytest.fixture
def wrong(tmp_path, monkeypatch):
    """`wrong(right, instead)` writes the configuration with one thing changed."""
    monkeypatch.chdir(tmp_path)

    def write(right="", instead=""):
        assert RIGHT.count(right) == 1 or not right
        (tmp_path / "run.toml").write_text(RIGHT.replace(right, instead) if right else RIGHT)

    return write


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_value_or_key_is_named_with_what_to_write(case, wrong, monkeypatch, capsys):
    right, instead, message, *options = WRONG[case]
    wrong(right, instead)
    typed = options[0] if options else ()
    message = message.replace("{eval}", ", ".join(sorted(EvalConfig.model_fields)))
    source = f"run.toml with {' '.join(typed)}" if typed else "run.toml"
    code, line = said(mmtrain, monkeypatch, capsys, "run", "run.toml", *typed)
    assert (code, line) == (2, f"mmtrain: {source}: {message}")


@pytest.mark.parametrize("case", SYNTAX)
def test_what_is_no_toml_is_shown_with_its_line(case, wrong, monkeypatch, capsys):
    right, instead, message = SYNTAX[case]
    wrong(right, instead)
    for program, name in ((mmtrain, "mmtrain"), (mmfeat, "mmfeat")):
        line = f"{name}: run.toml is not TOML: {message}"
        assert said(program, monkeypatch, capsys, "run", "run.toml") == (2, line)


@pytest.mark.parametrize("case", TYPED)
def test_a_wrong_override_is_named_as_it_was_typed(case, wrong, monkeypatch, capsys):
    override, message = TYPED[case]
    wrong()
    code, line = said(mmtrain, monkeypatch, capsys, "run", "run.toml", "--set", override)
    assert (code, line) == (2, f"mmtrain: run.toml with --set {override}: {message}")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.lr", "--set 'train.lr' is no assignment; write --set train.lr=3e-4"),
        ("=3", "--set '=3' is no assignment; write --set train.lr=3e-4"),
        (
            "train.balance.type=mmpareto",
            "--set 'train.balance.type=mmpareto': train.balance = 'none' is a value, not a section"
            "; make it one: --set 'train.balance={type=mmpareto}'",
        ),
    ],
)
def test_an_override_that_is_none_says_how_to_write_it(
    override, message, wrong, monkeypatch, capsys
):
    wrong()
    code, line = said(mmtrain, monkeypatch, capsys, "run", "run.toml", "--set", override)
    assert (code, line) == (2, f"mmtrain: {message}")


FEATURES = ("too small", "a misspelt tokenization", "a number for text", "one key by two names",
            "a choice that excludes another", "an unknown section")  # fmt: skip


@pytest.mark.parametrize("case", FEATURES)
def test_mmfeat_says_the_same_of_its_sections(case, wrong, monkeypatch, capsys):
    right, instead, message = WRONG[case]
    wrong(right, instead)
    assert said(mmfeat, monkeypatch, capsys, "run", "run.toml") == (
        2,
        f"mmfeat: run.toml: {message}",
    )


def no_file(path):
    path.unlink()


def folder(path):
    path.unlink()
    path.mkdir()


def bytes_of_another_alphabet(path):
    path.write_bytes(RIGHT.encode().replace(b"corpus", b"k\xf6rper", 1))


def huge(path):
    path.write_text("#" * 2**20 + "\n")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (no_file, "can't read configuration run.toml: No such file or directory; did you mean "
                  "runs.toml?"),
        (folder, "can't read configuration run.toml: it is a folder; name a file in it"),
        (bytes_of_another_alphabet, "run.toml: line 3: byte 0xf6 is not UTF-8; save the file as "
                                    "UTF-8"),
        (huge, "run.toml is larger than 1 MiB; that is no run configuration"),
    ],
)  # fmt: skip
def test_a_file_that_can_not_be_read_says_why(make, message, wrong, tmp_path, monkeypatch, capsys):
    wrong()
    (tmp_path / "runs.toml").write_text(RIGHT)
    make(tmp_path / "run.toml")
    for program, name in ((mmtrain, "mmtrain"), (mmfeat, "mmfeat")):
        line = f"{name}: {message}"
        assert said(program, monkeypatch, capsys, "run", "run.toml") == (2, line)


def test_an_encoder_whose_stream_is_not_made_says_how_to_make_it(plant, monkeypatch, capsys):
    planted = plant(counts=(4, 2, 2))
    roll = ("--set", "model.midi_encoder={type='piano_roll'}")
    code, line = said(mmtrain, monkeypatch, capsys, "run", planted.config, *roll)
    assert code == 6
    assert line == (
        f"mmtrain: store {planted.folder}/s.zarr has no stream 'piano_roll'; make it with: mmfeat "
        f"run {planted.config} --corpus {planted.folder}/manifest.jsonl --store "
        f"{planted.folder}/s.zarr"
    )


def test_the_shell_sees_the_same(wrong):
    wrong("epochs = 30", "epohcs = 30")
    program = "from mmfuse.trainer.cli import main; main()"
    line = [sys.executable, "-c", program, "run", "run.toml"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    message = "mmtrain: run.toml: train.epohcs = 30: no such key; did you mean 'epochs'?\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", message)
