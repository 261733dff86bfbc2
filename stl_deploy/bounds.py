"""How far sums and voltages of an integer layer can go, over all inputs: static worst cases.

The sums are one-sided: all inputs with positive weights firing, or all with negative ones. Voltages
follow from them over T steps: downwards v only decays (truncation toward zero never increases |v|),
upwards a voltage that did not spike is at most vth << 6 when the next step begins.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stl_deploy.network import LifLayer, row_sums

Int64 = NDArray[np.int64]


def one_sided_sums(layer: LifLayer, levels: int) -> tuple[Int64, Int64]:
    """(smallest, largest) a_in that any input 0..levels can give, int64 [O] each, with ``exp``."""
    weight = layer.synapses.weight.astype(np.int64)
    low = row_sums(layer.synapses, np.minimum(weight, 0)) * levels
    high = row_sums(layer.synapses, np.maximum(weight, 0)) * levels
    return low << layer.exp, high << layer.exp


def voltage_range(layer: LifLayer, levels: int, timesteps: int) -> tuple[Int64, Int64]:
    """(lower, upper) bound of v before the threshold, int64 [O] each, over ``timesteps`` steps.

    Holds for du = 4095, where u is the input of the step alone.
    """
    from stl_deploy.hw_sim.reference import decay

    low, high = one_sided_sums(layer, levels)
    bias = layer.bias_mant.astype(np.int64) << layer.bias_exp
    ceiling = layer.vth.astype(np.int64).reshape(len(low), -1).max(axis=1) << 6
    down = up = np.zeros_like(low)
    worst_down, worst_up = down, up
    for _ in range(timesteps):
        down = decay(np.minimum(down, 0), layer.dv) + (low << 6) + bias
        up = decay(np.clip(up, 0, np.maximum(ceiling, 0)), layer.dv) + (high << 6) + bias
        worst_down, worst_up = np.minimum(worst_down, down), np.maximum(worst_up, up)
    return worst_down, worst_up
