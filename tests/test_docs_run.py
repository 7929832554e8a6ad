"""What README and docs tell to type is typed, page by page, in a folder that has what they name.

A line of a code block, and a whole command in prose, is run as it stands; training and sweeps get
fewer epochs. Lines with placeholders (CORPUS, DIR) only have to parse, which test_docs.py sees to.
`NOT_RUN` says of every other that is left out where the same is tested. Examples of pages that read
what commands made run here, in their place between them.
"""

import contextlib
import doctest
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from test_docs import PAGES, ROOT, fault, needs_files, text
from typer.testing import CliRunner

from mmfuse.pipeline import cli as mmfeat
from mmfuse.trainer import cli as mmtrain

APPS = {"mmfeat": mmfeat.app, "mmtrain": mmtrain.app}
LATER = {"cli.md", "log.md", "CHANGELOG.md", "CONTRIBUTING.md"}  # parsed; log.md: of its day
NOT_RUN = {
    r"^make ": "the tests are what make runs; test_dist.py makes what make dist makes",
    r"^pip ": "a network; test_dist.py and test_plugin.py install wheels without one",
    r"--install-completion": "it writes into the home folder; test_help.py",
    r"s3://|https://": "a network; test_pull.py pulls from servers on this machine",
    r"@main": "a model of the hub; small ones of each type: test_wav2vec2.py, test_clap.py",
    r"tcp://|--executor dask": "a cluster; test_executors.py starts one",
    r"SLURM": "a cluster; test_array_jobs.py",
    r"^torchrun": "several processes; test_distributed.py",
    r"^(\.venv/bin/)?(python|pytest) ": "it measures for minutes; make bench",
    r"plugin/example|octaves|contour|tremolo|voting": "a package; test_plugin.py installs it",
    r"wandb|mlflow": "a service; test_loggers.py talks to stand-ins",
    r"loudness": "the encoder of the example, which no package brings",
    r" \.\.\. ": "not the whole line",
}
SLOW = r"random-weights|wav2vec2_late"  # models at full size
UNTRAINED = ("preprocessing.audio.model=wav2vec2-base", "preprocessing.audio.random_weights=0")
LESS = {
    "mmfeat sample": ["--clips", "48"],
    "mmtrain run": ["--set", "train.epochs=1", "--overwrite"],
    "mmtrain sweep": ["--set", "train.epochs=1"],
}


def steps(page):
    """(line, None) and (None, examples) of a page, in their order."""
    for lang, code, span in re.findall(
        r"^```(\w*)[^\n]*\n(.*?)^```$|`([^`\n]+)`", text(page), re.M | re.S
    ):
        if lang == "python" and code.startswith(">>>"):
            yield None, code
        for row in (span or code.replace("\\\n", " ")).splitlines():
            line = re.sub(r"^\$ ", "", row.strip())
            if is_command(line, prose=bool(span)):
                yield line, None


def is_command(line, prose):
    words = line.split(" ")
    if words[0] in APPS:
        return not prose or (len(words) > 2 and fault(shlex.split(line)) is None)
    known = ("make", "pip", "python", ".venv/bin/python", "torchrun", "pytest")
    return words[0] in known and not prose


def left_out(line):
    """Why a line is not run; "" if it is."""
    if re.search(r"(?<![\w$.])[A-Z]{2,}(?!\w)", line):
        return "a placeholder"
    return next((why for pattern, why in NOT_RUN.items() if re.search(pattern, line)), "")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with all that the pages name, and the working directory for a while."""
    folder = tmp_path_factory.mktemp("pages")
    for name in ("configs", "docs"):
        (folder / name).symlink_to(ROOT / name)
    with contextlib.chdir(folder):
        typed("mmfeat sample demo/corpus")
        typed("mmfeat run configs/late.toml")
        corpora(folder)
        models(folder / "models")
        yield folder


def corpora(folder):
    """The sample corpus in the other forms that pages name."""
    from peers import _sample as sample_of
    from peers import rows_of, save_lhotse
    from webdataset import TarWriter

    rows = pq.read_table("demo/corpus/manifest.parquet")
    for name in ("audio_path", "midi_path"):
        paths = [path and f"demo/corpus/{path}" for path in rows[name].to_pylist()]
        rows = rows.set_column(rows.column_names.index(name), name, [paths])
    for name in ("clips", "other"):
        pq.write_table(rows, f"{name}.parquet")
    table = rows.select(["id", "audio_path"]).rename_columns(["utterance_id", "wav"])
    pyarrow.csv.write_csv(table, "calls.csv")
    first = next(row for row in rows.to_pylist() if row["audio_path"] and row["midi_path"])
    (folder / "folder").mkdir()
    for target in ("song", "folder/a"):
        shutil.copy(first["audio_path"], f"{target}.flac")
        shutil.copy(first["midi_path"], f"{target}.mid")
    shutil.copytree("demo/corpus", "data")
    heard = [row for row in rows_of(folder / "data") if row["audio_path"]]
    pq.write_table(pa.Table.from_pylist(heard), "data/manifest.parquet")
    save_lhotse(folder / "data", "cuts_train.jsonl.gz")
    for number, part in enumerate(np.array_split(np.arange(len(heard)), 13)):
        with TarWriter(f"data/clips-{number:03}.tar") as writer:
            for index in part:
                writer.write(sample_of(folder / "data", heard[index]))


def models(folder):
    """Small models under the names of the pages."""
    from test_text_models import saved as saved_text
    from test_wav2vec2 import saved

    saved(folder / "hubert", "hubert", num_hidden_layers=12)
    saved_text(folder / "minilm", "bert")
    saved_text(folder / "xlm-roberta", "xlm-roberta")


def typed(line):
    """Type a line, with less work where that is said above."""
    words = shlex.split(line, comments=True)
    program, command = words[0], " ".join(words[:2])
    for run in re.findall(r"\bruns/(\w+)(?!\S)", line):
        config = Path(f"configs/{run}.toml")
        if command != "mmtrain run" and config.exists() and not Path("runs", run).exists():
            typed(f"mmtrain run {config}")
    given = dict(re.findall(r"--(corpus|store) (\S+)", line))
    if program == "mmtrain" and "store" in given and not Path(given["store"]).exists():
        typed(f"mmfeat run configs/late.toml --corpus {given['corpus']} --store {given['store']}")
    if "wav2vec2_late" in line:  # whose weights are on a hub
        words += [word for setting in UNTRAINED for word in ("--set", setting)]
    done = CliRunner().invoke(APPS[program], [*words[1:], *LESS.get(command, [])])
    assert done.exit_code == 0, f"{line}\n{done.output}\n{done.exception!r}"
    return done.output


def run_page(page, wanted):
    for store in Path().glob("*.zarr*"):  # of another page
        shutil.rmtree(store)
    names = {}
    for line, examples in steps(page):
        if line is None:
            if needs_files(page) and not wanted:
                test = doctest.DocTestParser().get_doctest(examples, names, page.name, None, 0)
                told = []
                failed = (
                    doctest.DocTestRunner().run(test, out=told.append, clear_globs=False).failed
                )
                assert failed == 0, "".join(told)
                names = test.globs
        elif not left_out(line) and bool(re.search(SLOW, line)) == wanted:
            typed(line)


TOLD = [page for page in PAGES if page.name not in LATER]
RUN = [p for p in TOLD if any(line and not left_out(line) for line, _ in steps(p))]


ALWAYS = {"README.md", "quick-start.md", "coming-from.md", "faq.md"}  # others take minutes
HEAVY = [
    p for p in RUN
    if any(line and not left_out(line) and re.search(SLOW, line) for line, _ in steps(p))
]  # fmt: skip
EACH = [p if p.name in ALWAYS else pytest.param(p, marks=pytest.mark.slow) for p in RUN]


@pytest.mark.parametrize("page", EACH, ids=lambda page: page.name)
def test_what_a_page_tells_to_type_works(page, place):
    run_page(page, wanted=False)


@pytest.mark.slow
@pytest.mark.parametrize("page", HEAVY, ids=lambda page: page.name)
def test_what_takes_a_model_at_full_size_works(page, place):
    run_page(page, wanted=True)


def test_every_reason_to_leave_a_line_out_is_needed():
    lines = [line for page in TOLD for line, _ in steps(page) if line]
    for pattern in NOT_RUN:
        assert any(re.search(pattern, line) for line in lines), pattern
    assert sum(not left_out(line) for line in lines) > 40
