"""What is wanted of each clip, how far it is, and where its entries and failures go."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from mmfuse.features.augment import VIEW_0, Draw
from mmfuse.features.clip import Clip
from mmfuse.features.encoders import Outputs
from mmfuse.features.errors import ClipError
from mmfuse.features.failures import Failure
from mmfuse.features.spec import Entry, StreamSpec
from mmfuse.features.task import TaskWriter
from mmfuse.pipeline.makers import Maker, Prepared
from mmfuse.pipeline.report import Report

_NO_CONTENT = bytes(32)


@dataclass(slots=True)
class Job:
    """One modality of one view of a clip: what is wanted of it, and how far it is."""

    clip: Clip
    maker: Maker
    view: int = 0
    drawn: Draw = VIEW_0
    content: bytes = _NO_CONTENT
    todo: Sequence[StreamSpec] | None = ()
    prepared: Prepared | None = None
    error: ClipError | None = None
    outputs: list[Outputs] = field(default_factory=list)
    is_short: bool = False  # of memory, which other clips may have taken


class Ledger:
    """What is known of entries and failures, and where new ones go. One thread writes."""

    def __init__(self, writer: TaskWriter, report: Report, *, retry_failed: bool) -> None:
        self._writer, self._report, self._retry = writer, report, retry_failed
        self._empty: set[str] = set()

    def wanted(self, job: Job) -> Sequence[StreamSpec] | None:
        """Streams that lack this very content of the clip; None where it failed before."""
        has = {s.key: self._has(job, s) for s in job.maker.specs}
        todo = [spec for spec in job.maker.specs if not has[spec.key]]
        with self._report.lock:
            self._report.already.update(s.name for s in job.maker.specs if has[s.key])
            if self._retry:
                return todo
            failures = self._writer.failures
            known = (failures.get(job.clip.id, s.key, job.content, job.view) for s in todo)
            before = next(filter(None, known), None)
            if before is not None:
                self._report.failed[before.stage, before.reason] += 1
                self._report.failed_before += 1
                return None
        return todo

    def append(self, job: Job, entries: dict[str, Entry]) -> None:
        """Write what was wanted of a clip."""
        augmentation = job.drawn.to_json() if job.view else ""
        for spec in job.todo or ():
            self._writer.stream(spec).append(
                job.clip.id, job.content, entries[spec.name], job.view, augmentation
            )
            self._writer.failures.clear(job.clip.id, spec.key, job.view)
            with self._report.lock:
                self._report.made[spec.name] += 1

    def fail(self, job: Job, error: ClipError) -> None:
        """Note why a clip could not be used; what it has already stays."""
        with self._report.lock:
            self._report.failed[job.maker.modality, error.reason] += 1
        for spec in job.maker.specs:
            if not self._has(job, spec):
                clip_id, modality = job.clip.id, job.maker.modality
                self._writer.failures.add(
                    Failure(
                        clip_id, modality, error.reason, str(error), spec.key, job.content, job.view
                    )
                )

    def _has(self, job: Job, spec: StreamSpec) -> bool:
        return self._writer.stream(spec).has(job.clip.id, job.content, job.view)

    def note_empty(self, clip: Clip) -> None:
        """A clip without text, audio and MIDI can be no mistake of the files, so it is told."""
        if clip.text is None and clip.audio is None and clip.midi is None:
            detail = "no text, no audio and no MIDI; fill one or drop the row"
            failure = Failure(clip.id, "manifest", "no_modality", detail, "", _NO_CONTENT)
            self._writer.failures.add(failure)
            with self._report.lock:
                self._report.failed["manifest", "no_modality"] += clip.id not in self._empty
            self._empty.add(clip.id)
        else:
            self._writer.failures.clear(clip.id, "")
