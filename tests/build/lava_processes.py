"""Runs in the Lava environment: processes that Lava itself brings, fed with the spikes of a file.

    python lava_processes.py IN.npz OUT.npz

Of each case NAME the input holds ``NAME/spikes`` [T, inputs], ``NAME/weight`` [neurons, inputs],
``NAME/delay`` of the same shape or 0, and ``NAME/how``, the JSON of {"tag", "process", "parameters"}.
The output holds ``NAME/spikes``, ``NAME/u`` and ``NAME/v`` [T, neurons].
"""

import json
import sys

import numpy as np
from lava.magma.core.run_conditions import RunSteps
from lava.magma.core.run_configs import Loihi2SimCfg
from lava.proc.dense.process import DelayDense, Dense
from lava.proc.io.sink import RingBuffer as Sink
from lava.proc.io.source import RingBuffer as Source
from lava.proc.lif.process import LIF, LIFRefractory

PROCESSES = {"LIF": LIF, "LIFRefractory": LIFRefractory}
HOP = 1  # steps that a spike takes through the synapses


def run(
    spikes: np.ndarray, weight: np.ndarray, delay: np.ndarray, how: dict[str, object]
) -> dict[str, np.ndarray]:
    steps, size = len(spikes) + HOP, weight.shape[:1]
    silence = np.zeros((HOP, spikes.shape[1]), spikes.dtype)
    source = Source(data=np.concatenate([spikes, silence]).T)
    synapses = DelayDense(weights=weight, delays=delay) if delay.ndim else Dense(weights=weight)
    neurons = PROCESSES[how["process"]](shape=size, **how["parameters"])
    sink = Sink(shape=size, buffer=steps)
    source.s_out.connect(synapses.s_in)
    synapses.a_out.connect(neurons.a_in)
    neurons.s_out.connect(sink.a_in)
    config = Loihi2SimCfg(select_tag=how["tag"])
    found: dict[str, list[np.ndarray]] = {"u": [], "v": []}
    for _ in range(steps):
        neurons.run(condition=RunSteps(num_steps=1), run_cfg=config)
        for name, rows in found.items():
            rows.append(np.array(getattr(neurons, name).get()))
    sent = sink.data.get().T
    neurons.stop()
    return {"spikes": sent[HOP:]} | {name: np.array(rows)[HOP:] for name, rows in found.items()}


def main() -> None:
    given, found = np.load(sys.argv[1]), {}
    for name in sorted({key.split("/")[0] for key in given.files}):
        arrays = [given[f"{name}/{key}"] for key in ("spikes", "weight", "delay")]
        traces = run(*arrays, json.loads(str(given[f"{name}/how"])))
        found |= {f"{name}/{key}": values for key, values in traces.items()}
        print(f"{name} done", file=sys.stderr, flush=True)
    np.savez(sys.argv[2], **found)


if __name__ == "__main__":
    main()
