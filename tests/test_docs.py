"""The pages say what is: examples run, links lead somewhere, commands parse, tables are true."""

import ast
import doctest
import re
import runpy
import shlex
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import typer

from mmfuse.features.clock import FrameRate
from mmfuse.features.corpus import COLUMNS
from mmfuse.features.spec import Entry, StreamSpec, Timing
from mmfuse.features.store import open_store
from mmfuse.features.writer import StoreWriter
from mmfuse.pipeline import cli as mmfeat
from mmfuse.trainer import cli as mmtrain

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
PROGRAMS = {app.info.name: typer.main.get_command(app) for app in (mmfeat.app, mmtrain.app)}
FOLDERS = ("features", "pipeline", "trainer", "tests", "docs", "configs", ".ci")
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def text(page):
    return page.read_text(encoding="utf-8")


def fences(page, language=None):
    """Code blocks of a page, those of one language or all."""
    found = re.findall(r"^```(\w*)[^\n]*\n(.*?)^```$", text(page), re.M | re.S)
    return [code for name, code in found if language in (None, name)]


def spans(page):
    """What stands between backticks in a page's prose."""
    prose = re.sub(r"^```.*?^```$", "", text(page), flags=re.M | re.S)
    return re.findall(r"`([^`\n]+)`", prose)


def needs_files(page):
    """Whether examples of a page read what its commands made."""
    return any('.zarr")' in code for code in fences(page, "python") if code.startswith(">>>"))


def typed(page):
    """Command lines in a page's code blocks, without prompt and comment."""
    for code in fences(page):
        for line in code.replace("\\\n", " ").splitlines():
            command = re.sub(r"^(\$|Example:) ", "", line.strip()).removeprefix(".venv/bin/")
            if command.split(" ")[0] in (*PROGRAMS, "make"):
                yield command


def fault(words):
    """What is wrong with a whole command line; None if it parses."""
    program, *rest = words
    try:
        group = PROGRAMS[program]
        if not rest or rest[0].startswith("-"):
            group.make_context(program, rest, resilient_parsing=True)
            return None
        if rest[0] not in group.commands:
            return f"{program} has no command {rest[0]}"
        group.commands[rest[0]].make_context(f"{program} {rest[0]}", rest[1:])
    except Exception as error:
        return str(error) or repr(error)
    missing = [w for w in rest if w.startswith("configs/") and not (ROOT / w).is_file()]
    return f"there is no {missing[0]}" if missing else None


@every_page
def test_commands_in_code_blocks_parse(page):
    for line in typed(page):
        words = shlex.split(line, comments=True)
        if words[0] == "make":
            assert [w for w in words[1:] if "=" not in w and w not in TARGETS] == [], line
        else:
            assert fault(words) is None, line


@every_page
def test_commands_in_prose_have_known_options(page):
    for span in spans(page):
        words = span.split()
        if words[0] == "make" and len(words) > 1:
            assert words[1] in TARGETS, span
        if words[0] in PROGRAMS and len(words) > 1 and not words[1].startswith("-"):
            command = PROGRAMS[words[0]].commands.get(words[1])
            assert command is not None, span
            known = {"--help"}.union(*(param.opts for param in command.params))
            assert {w.split("=")[0] for w in words if w.startswith("-")} <= known, span


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("mmfeat run configs/late.toml", None),
        ("mmfeat --help", None),
        ("mmfeat fly", "mmfeat has no command fly"),
        ("mmfeat run", "config"),
        ("mmfeat run configs/late.toml --fast", "--fast"),
        ("mmtrain run configs/absent.toml", "there is no configs/absent.toml"),
    ],
)
def test_the_check_of_commands_finds_a_bad_one(line, expected):
    found = fault(line.split())
    assert found is None if expected is None else expected in found


@every_page
def test_links_and_paths_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text(page)):
        if not re.match(r"[a-z]+:", target):
            assert (page.parent / target).exists(), target
    for span in spans(page):
        if re.fullmatch(r"[\w./-]+", span) and not re.search(r"NAME|<", span):
            if span.split("/")[0] in FOLDERS and "/" in span:
                assert (ROOT / span).exists(), span
            elif re.fullmatch(r"[A-Z]+\.md|\w+\.py", span):
                assert [*ROOT.glob(span), *ROOT.glob(f"[a-z]*/**/{span}")], span


@every_page
def test_examples_run(page):
    if needs_files(page):
        pytest.skip("test_docs_run.py runs them, after the commands that make what they read")
    examples = "\n".join(code for code in fences(page, "python") if code.startswith(">>>"))
    test = doctest.DocTestParser().get_doctest(examples, {}, page.name, str(page), 0)
    told = []
    assert doctest.DocTestRunner().run(test, out=told.append).failed == 0, "".join(told)


def test_cli_page_is_what_the_help_says():
    page = runpy.run_path(str(ROOT / "docs" / "make_cli.py"))["document"]()
    assert text(ROOT / "docs" / "cli.md") == page, "out of date; write it with: make docs"


def test_time_page_has_every_rate():
    rows = re.findall(
        r"^\| `([\d.df]+)` \| ([\d/]+)(, drop-frame)? \| ([\d.]+) s \|$",
        text(ROOT / "docs" / "time.md"),
        re.M,
    )
    for name, fps, drop, day_s in rows:
        rate = FrameRate.parse(name)
        assert (rate.fps, rate.drop, rate.day_s) == (Fraction(fps), bool(drop), Fraction(day_s))
    with pytest.raises(Exception, match="choose from") as error:
        FrameRate.parse("no such")
    assert sorted(str(error.value).split(": ")[1].split(", ")) == sorted(row[0] for row in rows)


def test_corpus_page_has_every_column_and_every_reason():
    page = text(ROOT / "docs" / "corpus.md")
    columns, _, failures = page.partition("## What goes wrong")
    assert {name for name in COLUMNS if f"`{name}`" not in columns} == set()
    table = "\n".join(line for line in failures.splitlines() if line.startswith("|"))
    assert set(re.findall(r"`(\w+)`", table)) == reasons()


def reasons():
    """First arguments of all errors about a clip that the code raises."""
    kinds = {"ClipError", "DecodeError", "MidiError", "AlignError"}
    found = set()
    for package in ("features", "pipeline"):
        for file in (ROOT / package).glob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") in kinds:
                    parts = ast.walk(node.args[0])
                    found |= {p.value for p in parts if isinstance(p, ast.Constant)}
    return found


FRAMES = StreamSpec("logmel", "audio", (8,), "float16", {}, Timing("frames", Fraction(1, 50)))
PLANES = StreamSpec("piano_roll", "midi", (2, 16), "uint8")
TOKENS = StreamSpec("text_tokens", "text", (), "uint16")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("docs") / "small.zarr"
    rng = np.random.default_rng(0)
    with StoreWriter(path) as writer:
        for spec in (FRAMES, PLANES, TOKENS):
            stream = writer.stream(spec)
            for number in (*range(7), 3):  # clip 3 changes and is written anew
                values = rng.integers(0, 100, (300 * (number % 4), *spec.item))
                stream.append(f"clip-{number}", rng.bytes(32), Entry(values.astype(spec.dtype)))
                if number in (2, 5):
                    stream.seal()
    return path


def published(name):
    """A function that the page on the store's format shows."""
    (code,) = [code for code in fences(ROOT / "docs" / "store-format.md") if f"def {name}(" in code]
    namespace = {}
    exec(compile(code, "store-format.md", "exec"), namespace)
    return namespace[name], code


@pytest.mark.parametrize("spec", [FRAMES, PLANES, TOKENS], ids=lambda spec: spec.name)
def test_the_published_reader_reads_what_ours_reads(store, spec):
    read_stream, code = published("read_stream")
    assert code.count("\n") <= 40
    assert "mmfuse" not in code
    entries, stream = read_stream(store, spec.key), open_store(store)[spec.name]
    assert sorted(entries) == [(clip_id, 0) for clip_id in sorted(stream.ids)]
    assert len(entries) == 7
    for clip_id in stream.ids:
        assert entries[clip_id, 0].dtype == stream[clip_id].dtype
        np.testing.assert_array_equal(entries[clip_id, 0], stream[clip_id])


def test_the_published_root_is_the_one_in_the_manifest(store):
    root, _ = published("root")
    opened = open_store(store)
    for key, spec in opened.specs().items():
        columns = (
            opened[key].table[n].to_pylist() for n in ("clip_id", "view", "content", "digest")
        )
        entries = zip(*columns, strict=True)
        assert root(spec.fingerprint, entries) == opened.manifest["streams"][key]["root"]
