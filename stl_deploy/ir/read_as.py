"""How the populations of a model file were read: what a file says, and what had to be assumed.

An importer makes one record for each population. It travels with the network, in the JSON string of
``model.float.nir`` and of ``model.nir``, so that whoever runs the network later can see what was assumed.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

# Who said it: the file (or the class that the user named), an option of the user's, a raster that was
# given with it, or nobody.
Origin = Literal["file", "option", "raster", "assumed"]
Property = Literal["reset", "when", "dt", "tau", "timesteps", "spikes"]
Words = Annotated[str, Field(max_length=200)]


class ReadAs(BaseModel):
    """How one population was read.

    Attributes:
        population: its name in the float graph.
        neuron: the kind of neuron in the words of its source, such as "LIF", "snntorch.Leaky" or
            "spikingjelly.LIFNode".
        reset: what a spike does to v, such as "zero", "subtract", "to -0.5" or "none".
        when: when that happens, such as "same step" or "next step"; empty where nothing is reset.
        dt: seconds of a step, None for neurons that count steps.
        tau: what a step leaves of v, where the file does not say it; None where it does.
        timesteps: T, the steps of a sample.
        spikes: how many spikes a neuron can send in a step, None where it sends values.
        source: where it stood in what was read, such as "net.nir: 3 (LIF)".
        origin: who said each property; "file" where a key is missing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    population: str
    neuron: Words
    reset: Words
    when: Words
    dt: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    tau: Annotated[float, Field(ge=0, lt=1)] | None = None
    timesteps: int = Field(ge=1)
    spikes: int | None = Field(default=None, ge=1)
    source: Annotated[str, Field(max_length=5000)]
    origin: dict[Property, Origin] = Field(default_factory=dict)

    @property
    def assumed(self) -> tuple[Property, ...]:
        """The properties that nobody stated."""
        return tuple(name for name, origin in self.origin.items() if origin == "assumed")
