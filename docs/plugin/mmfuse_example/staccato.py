"""An augmentation of MIDI: notes end sooner; where they begin stays."""

from mmfuse.features.errors import ConfigError
from mmfuse.features.notes import COLUMN

modality = "midi"
version = 1


def draw(options, rng):
    """What one view differs in: the share of its length that a note keeps."""
    if set(options) - {"least"} or not 0 < options.get("least", 0.5) <= 1:
        raise ConfigError(f"staccato: options {dict(options)}; least = 0 to 1 is all there is")
    return {"share": round(float(rng.uniform(options.get("least", 0.5), 1)), 3)}


def apply(notes_values, drawn, rng):
    """New rows; those that were given stay as they were."""
    values = notes_values.copy()
    for begins, ends in (("tick", "offset_tick"), ("onset_s", "offset_s")):
        begin, end = values[:, COLUMN[begins]], values[:, COLUMN[ends]]
        end[:] = begin + drawn["share"] * (end - begin)
    values[:, COLUMN["offset_tick"]] = values[:, COLUMN["offset_tick"]].round()
    return values
