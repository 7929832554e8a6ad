"""An augmentation of audio: it swells and fades some times a second."""

import numpy as np

from mmfuse.features.errors import ConfigError

modality = "audio"
version = 1  # raise it whenever the numbers change


def draw(options, rng):
    """What one view differs in, as plain JSON: it goes into the store's index."""
    if set(options) - {"depth"} or not 0 <= options.get("depth", 0.5) <= 1:
        raise ConfigError(f"tremolo: options {dict(options)}; depth = 0 to 1 is all there is")
    most = options.get("depth", 0.5)
    return {"depth": round(float(rng.uniform(0, most)), 3), "hz": int(rng.integers(3, 9))}


def apply(audio, drawn, rng):
    """As many samples as came in, and nothing moves in time."""
    t = np.arange(audio.frames) / audio.rate_hz
    swell = 1 - drawn["depth"] * (0.5 - 0.5 * np.cos(2 * np.pi * drawn["hz"] * t))
    return (audio.samples_N * swell).astype(np.float32)
