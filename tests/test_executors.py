"""One promise, kept by every executor: whatever workers do, the same store comes out."""

import json
import os
import time
from pathlib import Path

import pytest
from faults import TEXT, Fault, Faulty, act, write_texts

from mmfuse.features.corpus import open_corpus
from mmfuse.features.store import open_store
from mmfuse.pipeline.cluster import DaskExecutor
from mmfuse.pipeline.executors import Done, Failed, InProcess, Lost
from mmfuse.pipeline.local import LocalExecutor
from mmfuse.pipeline.progress import Progress
from mmfuse.pipeline.run import make_features

POISON = "clip-37"


@pytest.fixture(scope="module")
def cluster():
    """Address of a Dask cluster of two workers, which gives up a task at its first death."""
    import logging

    import dask
    from distributed import LocalCluster

    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=":0", memory_limit=0,
            silence_logs=logging.CRITICAL,
        ) as running,
    ):  # fmt: skip
        yield running.scheduler_address


@pytest.fixture(params=["local", pytest.param("one local worker", marks=pytest.mark.slow), "dask"])
def executor(request):
    """Each executor that has worker processes."""
    if request.param == "dask":
        return DaskExecutor(2, request.getfixturevalue("cluster"), silent_s=4)
    return LocalExecutor(2 if request.param == "local" else 1, silent_s=4)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A manifest of 250 short texts: four tasks."""
    return write_texts(tmp_path_factory.mktemp("texts") / "m.jsonl")


def run(corpus, store, executor=None):
    return make_features(open_corpus(corpus), store, TEXT, Progress(quiet=True), executor=executor)


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory):
    """The store as one process makes it; do not write into it."""
    store = tmp_path_factory.mktemp("whole") / "s.zarr"
    run(corpus, store)
    return store


@pytest.fixture(scope="module")
def without(corpus, tmp_path_factory):
    """Root of the store that lacks the poisonous clip."""
    folder = tmp_path_factory.mktemp("without")
    fault = Fault(POISON, "bad", folder)
    return run(corpus, folder / "s.zarr", Faulty(InProcess(), fault)).root


def files(store):
    """Bytes of all files but those that tell of the run; of the manifest all but its checks."""
    found = {}
    for file in sorted(Path(store).rglob("*")):
        name = str(file.relative_to(store))
        if file.is_file() and file.name not in ("writer.lock", "run.json"):
            found[name] = file.read_bytes()
    document = json.loads(found["_mm/manifest.json"])
    found["_mm/manifest.json"] = {
        key: value for key, value in document.items() if key in ("format", "streams", "root")
    }
    return found


# -- stores ----------------------------------------------------------------------------------------


def test_workers_make_the_same_files_as_one_process(executor, corpus, whole, tmp_path):
    report = run(corpus, tmp_path / "s.zarr", executor)
    assert (report.clips, report.made["text_tokens"]) == (250, 250)
    assert files(tmp_path / "s.zarr") == files(whole)


def test_a_worker_that_is_killed_once_costs_nothing(executor, corpus, whole, tmp_path):
    fault = Fault(POISON, "kill", tmp_path, times=1)
    report = run(corpus, tmp_path / "s.zarr", Faulty(executor, fault))
    assert fault.strikes == 1
    assert report.exit_code == 0
    assert files(tmp_path / "s.zarr") == files(whole)


def test_a_clip_that_kills_its_workers_is_left_out_alone(executor, corpus, without, tmp_path):
    fault = Fault(POISON, "kill", tmp_path)
    report = run(corpus, tmp_path / "s.zarr", Faulty(executor, fault))
    assert fault.strikes == 3
    assert report.root == without
    assert report.failed == {("text", "killed_worker"): 1}
    (row,) = open_store(tmp_path / "s.zarr").failures().to_pylist()
    assert (row["clip_id"], row["reason"]) == (POISON, "killed_worker")

    # what has killed before is not tried again
    report = run(corpus, tmp_path / "s.zarr", Faulty(executor, fault))
    assert fault.strikes == 3
    assert (report.root, report.failed_before) == (without, 1)


def test_a_clip_that_hangs_is_ended_and_left_out(executor, corpus, without, tmp_path):
    fault = Fault(POISON, "hang", tmp_path)
    report = run(corpus, tmp_path / "s.zarr", Faulty(executor, fault))
    assert fault.strikes in (2, 3)  # the first time it may share its worker with another task
    assert report.root == without
    (row,) = open_store(tmp_path / "s.zarr").failures().to_pylist()
    assert "no sign of life" in row["detail"]


def test_an_exception_stops_the_run_and_the_next_goes_on(executor, corpus, whole, tmp_path):
    fault = Fault(POISON, "exception", tmp_path, times=1)
    with pytest.raises(RuntimeError, match="a fault of ours"):
        run(corpus, tmp_path / "s.zarr", Faulty(executor, fault))
    assert run(corpus, tmp_path / "s.zarr", executor).root == open_store(whole).root


def test_an_outcome_that_is_told_twice_counts_once(executor, corpus, whole, tmp_path):
    report = run(corpus, tmp_path / "s.zarr", Faulty(executor, twice=True))
    assert report.made["text_tokens"] == 250
    assert files(tmp_path / "s.zarr") == files(whole)


def test_a_cluster_of_one_worker_that_is_started_here_survives_a_kill(corpus, whole, tmp_path):
    fault = Fault(POISON, "kill", tmp_path, times=1)
    run(corpus, tmp_path / "s.zarr", Faulty(DaskExecutor(1), fault))
    assert fault.strikes == 1
    assert files(tmp_path / "s.zarr") == files(whole)


# -- executors alone -------------------------------------------------------------------------------


def outcomes(executor, tasks, max_in_flight=4, signs=lambda task: None):
    return executor.map_unordered(act, iter(tasks), max_in_flight, signs)


def test_a_death_harms_no_other_task(executor):
    tasks = [f"ok {n}" for n in range(8)]
    tasks[3:3] = ["kill", "raise it"]
    found = list(outcomes(executor, tasks))
    assert sorted(outcome.task for outcome in found) == sorted(tasks)
    lost = {outcome.task for outcome in found if isinstance(outcome, Lost)}
    failed = {o.task: str(o.error) for o in found if isinstance(o, Failed)}
    assert "kill" in lost
    if isinstance(executor, LocalExecutor):  # Dask gives up what waits beside the one that died
        assert lost == {"kill"}
        assert failed == {"raise it": "it"}
    assert all(o.result[0] == o.task for o in found if isinstance(o, Done))


def test_however_slowly_outcomes_are_taken_few_tasks_are_out(executor):
    asked = []

    def tasks():
        for n in range(20):
            asked.append(n)
            yield f"ok {n}"

    for taken, _ in enumerate(outcomes(executor, tasks())):
        time.sleep(0.02)
        assert len(asked) - taken <= 5


def test_processes_are_kept_for_many_tasks_and_leave_when_the_taker_stops(executor):
    found = outcomes(executor, [f"ok {n}" for n in range(12)] + ["sleep 100"] * 4)
    pids = {next(found).result[1] for _ in range(12)}
    assert len(pids) <= 2
    began = time.monotonic()
    found.close()
    assert time.monotonic() - began < 5
    if isinstance(executor, LocalExecutor):
        assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)


def test_a_process_that_holds_a_large_model_is_kept():
    tasks = ["ok 0", "grow 400_000_000", "ok 1", "ok 2"]
    found = [o.result for o in outcomes(LocalExecutor(1), tasks)]
    assert len({pid for _, pid in found}) == 1
