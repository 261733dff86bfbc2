"""The JSON string of a float graph: versions, and what each of them may say."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from stl_deploy.ir.nir_graph import FloatMeta

COMMON = {"timesteps": 4, "classes": 1, "population": 1}
TRAINED = {"weight_bits": 8, "scale": {}}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"input_levels": 255},
        {"version": 2, "trained": TRAINED},
        {"version": 3, "signed": True, "input_levels": 32767},
        {"version": 3, "held": True, "trained": TRAINED},
    ],
)
def test_what_it_says_is_read_again(fields):
    meta = FloatMeta(**COMMON, **fields)
    assert FloatMeta.model_validate_json(meta.text()) == meta
    assert ("signed" in json.loads(meta.text())) == (meta.version == 3)


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"signed": True}, "version 1 with signed or held"),
        ({"version": 2, "trained": TRAINED, "held": True}, "version 2 with signed or held"),
        ({"version": 3}, "version 3 without signed or held"),
        ({"version": 2}, "version 2 without trained"),
        ({"trained": TRAINED}, "version 1 with trained"),
        ({"input_levels": 256}, "256 levels without a sign; at most 255"),
        ({"version": 3, "signed": True, "input_levels": 32768}, "less than or equal to 32767"),
    ],
)
def test_what_a_version_cannot_say_is_refused(fields, what):
    with pytest.raises(ValidationError, match=what):
        FloatMeta(**COMMON, **fields)
