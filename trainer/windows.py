"""What a model is shown of a clip that it is asked of: all, or spans whose answers are averaged."""

from dataclasses import dataclass

from mmfuse.trainer.config import RunConfig


@dataclass(frozen=True, slots=True)
class Windows:
    """`count` evenly spaced spans of `length_s` seconds, the same in all streams; 0: all of it.

    The first begins with the clip and the last ends with it; a single one lies in the middle. In a
    clip that is not longer than a span all of them are the clip. What has no time, such as text, is
    whole in each.
    """

    count: int = 0
    length_s: float = 0.0

    @property
    def places(self) -> list[float]:
        """Where they lie in the room that they have, from 0 to 1."""
        if self.count < 2:
            return [0.5]
        return [i / (self.count - 1) for i in range(self.count)]


WHOLE_CLIPS = Windows()


def windows_of(config: RunConfig) -> Windows:
    """Those that `eval.windows` asks for."""
    count = config.eval.windows
    return Windows(count, config.train.crop_s) if count else WHOLE_CLIPS
