"""An importer: networks of linear layers as JSON, whose neurons fire at the threshold."""

from __future__ import annotations

import json
from itertools import pairwise

import nir
import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stl_deploy.errors import InputError, Problem
from stl_deploy.importers import Importer
from stl_deploy.importers.given import File, Model
from stl_deploy.importers.nir import graph as nir_graph
from stl_deploy.ir import nir_graph as G
from stl_deploy.ir.read_as import ReadAs

MOST_BYTES = 1 << 28


class Layer(BaseModel):
    """Weights [outputs][inputs], and a decay and threshold for all neurons behind them."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    weight: list[list[float]] = Field(min_length=1)
    decay: float = Field(ge=0, lt=1)
    threshold: float


class Network(BaseModel):
    """The whole file."""

    model_config = ConfigDict(extra="forbid")
    timesteps: int = Field(ge=1)
    layers: list[Layer] = Field(min_length=1)


def read_model(file: File) -> Model:
    """The lowered graph of a file. Raises InputError naming everything that is wrong."""
    made = _parsed(file)
    file.agree(timesteps=made.timesteps)
    options = nir_graph.Options(timesteps=made.timesteps, classes=file.given.classes)
    return Model(nir_graph.read(file.path, options, _graph(file, made), _read_as(made)))


def _read_as(network: Network) -> tuple[ReadAs, ...]:
    return tuple(
        ReadAs(
            population=f"lif{i}",
            neuron="LIF",
            reset="zero",
            when="same step",
            timesteps=network.timesteps,
            source=f"layers.{i - 1}",
        )
        for i, _ in enumerate(network.layers, 1)
    )


def _parsed(file: File) -> Network:
    if file.path.stat().st_size > MOST_BYTES:
        raise InputError(Problem(str(file.path), f"is larger than {MOST_BYTES:,} bytes"))
    try:
        return Network.model_validate(json.loads(file.path.read_text("utf-8")))
    except ValidationError as error:
        raise InputError(
            [
                Problem(f"{file.path}: {'.'.join(map(str, e['loc']))}", e["msg"])
                for e in error.errors(include_url=False)
            ]
        ) from None
    except (ValueError, RecursionError) as error:
        raise InputError(Problem(str(file.path), f"is not JSON: {error}")) from None


def _graph(file: File, network: Network) -> nir.NIRGraph:
    nodes: dict[str, nir.ir.NIRNode] = {}
    for i, layer in enumerate(network.layers, 1):
        try:
            weight = np.array(layer.weight, np.float64)
        except ValueError:
            where = f"{file.path}: layers.{i - 1}.weight"
            raise InputError(Problem(where, "its rows differ in length")) from None
        # NIR fires above the threshold, this format at it.
        above = np.nextafter(np.full(len(weight), layer.threshold), -np.inf)
        step = 1 - layer.decay
        nodes[f"fc{i}"] = nir.Linear(weight=weight)
        nodes[f"lif{i}"] = G.lif(above, tau=G.DT / step, r=1 / step)
    inputs = len(network.layers[0].weight[0])
    every = {
        "input": nir.Input({"input": np.array([inputs])}),
        **nodes,
        "output": nir.Output({"output": np.array([len(network.layers[-1].weight)])}),
    }
    return nir.NIRGraph(every, list(pairwise(every)), type_check=False)


ROW = {
    "snn-json": Importer(
        "*.snn.json", lambda file: file.path.name.endswith(".snn.json"), "snn_json:read_model"
    )
}
