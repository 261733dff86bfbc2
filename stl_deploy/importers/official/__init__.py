"""Official checkpoints of published systems: state_dicts whose class is known by the names in them.

A further system is an entry of ``SYSTEMS`` and a file with its ``SYSTEM`` (``system.py``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

ANY = "normalize", "input_shape", "levels"  # what the readers of all of them have a use for


@dataclass(frozen=True)
class Official:
    """One system: what its files are, the ``module`` that reads them, and how they are known.

    ``names``: patterns, each of which the end of some name in the file matches. ``options``: the fields of
    ``Given`` that it has a use for, in addition to ``ANY``. ``missing``: what files lack and no option says;
    they are refused.
    """

    what: str
    module: str
    names: tuple[str, ...]
    options: tuple[str, ...] = ()
    missing: str = ""

    def recognises(self, strings: frozenset[str]) -> bool:
        """Whether a file with these names is one."""
        return all(
            any(re.search(rf"(?:^|\.)(?:{pattern})$", text) for text in strings)
            for pattern in self.names
        )


SYSTEMS = {
    "ltmd": Official(
        "a state_dict of LTMD",
        "ltmd",
        (r"features\.conv0\.layer\.weight", r"outspike1\.w", r"lateralfc1\.layer\.weight"),
        ("tau",),
    ),
    "tebn": Official(
        "a state_dict of TEBN",
        "tebn",
        (r"fwd\.module\.weight", r"bn\.p", r"bn\.bn\.running_var"),
        ("tau", "threshold"),
    ),
    "rate-based": Official(
        "a state_dict of rate-based backpropagation",
        "rate_based",
        (
            r"classifier(\.\d+)?\.weight",
            r"feature\.\d+\.running_var|layer\d+\.\d+\.(bn1|convNeuron1\.1)\.running_var",
        ),
        ("tau", "threshold"),
    ),
    "time-based": Official(
        "a state_dict of time-based training losses",
        "",
        (r"\d+\.norm_weight", r"\d+\.norm_bias"),
        missing="thresholds, time constants and strides",
    ),
    "stork": Official(
        "a state_dict of stork",
        "",
        (r"con\d+\.op\.weight",),
        missing="time constants, kernels and strides",
    ),
}
