"""The loop that turns int8 into floats, compiled: NumPy takes fourteen times as long.

Shapes: T row, F channel, S block.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmfuse.features.compiled import compiled


@compiled
def scale_rows(
    stored_TF: NDArray[np.int8], scales_SF: NDArray[np.float32], block: int, out_TF: Any
) -> None:
    """Write stored * scales into float32 `out_TF`; block s is rows s * block and following."""
    for t in range(stored_TF.shape[0]):
        scales_F = scales_SF[t // block]
        for f in range(stored_TF.shape[1]):
            out_TF[t, f] = np.float32(stored_TF[t, f]) * scales_F[f]
