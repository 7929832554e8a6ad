"""The promise of the executors, kept by jobs that share nothing: `--shard I/N`, then `merge`.

A scheduler of such jobs (SLURM, make -j) starts one again when it dies or its time is up; so does
this one. There is no engine that sees the deaths, only the store and what is noted in it.
"""

import multiprocessing

import pytest
from faults import TEXT, Fault, Faulty, write_texts

from mmfuse.features.combine import merge
from mmfuse.features.corpus import open_corpus
from mmfuse.features.store import open_store
from mmfuse.features.task import has_died
from mmfuse.features.verify import verify_store
from mmfuse.pipeline.executors import InProcess
from mmfuse.pipeline.local import LocalExecutor
from mmfuse.pipeline.progress import Progress
from mmfuse.pipeline.run import make_features

JOBS = 2
POISON = "clip-37"  # in the first of four tasks, so in the first job
FORK = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A manifest of 250 short texts: four tasks."""
    return write_texts(tmp_path_factory.mktemp("texts") / "m.jsonl")


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory):
    """Root of the store as one process makes it."""
    store = tmp_path_factory.mktemp("whole") / "s.zarr"
    return make_features(open_corpus(corpus), store, TEXT, Progress(quiet=True)).root


@pytest.fixture(scope="module")
def without(corpus, tmp_path_factory):
    """Root of the store that lacks the poisonous clip."""
    folder = tmp_path_factory.mktemp("without")
    executor = Faulty(InProcess(), Fault(POISON, "bad", folder))
    store, quiet = folder / "s.zarr", Progress(quiet=True)
    return make_features(open_corpus(corpus), store, TEXT, quiet, executor=executor).root


def job(corpus, store, number, fault, *, twice=False):
    """One process of the array, as `mmfeat tokenize --shard` does it."""
    place = LocalExecutor(1, silent_s=4) if has_died(store) else InProcess()
    executor = Faulty(place, fault, twice)
    share = (number, JOBS)
    opened = open_corpus(corpus)
    make_features(opened, store, TEXT, Progress(quiet=True), executor=executor, share=share)


def array(corpus, folder, fault=None, *, limit_s=60, **how):
    """All jobs until all have ended well, each started again at most four times; then one store.

    Returns the store and how often a job was started.
    """
    stores = {number: folder / f"part-{number}.zarr" for number in range(JOBS)}
    left, starts = dict(stores), 0
    while left:
        starts += len(left)
        assert starts < 5 * JOBS
        running = {
            number: FORK.Process(target=job, args=(corpus, store, number, fault), kwargs=how)
            for number, store in left.items()
        }
        for process in running.values():
            process.start()
        for number, process in running.items():
            process.join(limit_s)
            if process.is_alive():
                process.kill()
                process.join()
            if process.exitcode == 0:
                del left[number]
    merge(folder / "s.zarr", list(stores.values()))
    store = open_store(folder / "s.zarr")
    assert not verify_store(folder / "s.zarr", share=1.0).findings
    return store, starts


def failures(store):
    return [(row["clip_id"], row["reason"]) for row in store.failures().to_pylist()]


def test_jobs_that_share_nothing_make_the_same_store(corpus, whole, tmp_path):
    store, starts = array(corpus, tmp_path)
    assert (store.root, starts) == (whole, JOBS)


def test_a_job_that_is_killed_goes_on_when_started_again(corpus, whole, tmp_path):
    fault = Fault(POISON, "kill", tmp_path, times=1)
    store, starts = array(corpus, tmp_path, fault)
    assert (store.root, starts, fault.strikes) == (whole, JOBS + 1, 1)
    assert failures(store) == []


def test_a_clip_that_kills_its_job_is_left_out_alone(corpus, without, tmp_path):
    fault = Fault(POISON, "kill", tmp_path)
    store, starts = array(corpus, tmp_path, fault)
    assert (store.root, starts, fault.strikes) == (without, JOBS + 1, 4)
    assert failures(store) == [(POISON, "killed_worker")]


@pytest.mark.slow
def test_a_clip_that_hangs_costs_its_job_the_time_limit_and_is_left_out(corpus, without, tmp_path):
    fault = Fault(POISON, "hang", tmp_path)
    store, _ = array(corpus, tmp_path, fault, limit_s=40)
    assert store.root == without
    assert failures(store) == [(POISON, "killed_worker")]


def test_an_exception_ends_a_job_and_the_next_goes_on(corpus, whole, tmp_path):
    fault = Fault(POISON, "exception", tmp_path, times=1)
    store, starts = array(corpus, tmp_path, fault)
    assert (store.root, starts) == (whole, JOBS + 1)


def test_an_outcome_that_is_told_twice_counts_once(corpus, whole, tmp_path):
    store, _ = array(corpus, tmp_path, twice=True)
    assert store.root == whole
