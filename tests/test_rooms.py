"""The rooms of the product and their rules (docs/architecture.md), and that a broken rule is seen."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.build import room_rules as rules

Rule = Callable[[rules.Sources], list[str]]


@pytest.mark.parametrize(
    "rule",
    [
        rules.imports_at_the_top,
        rules.no_higher_room,
        rules.no_type_tests,
        rules.no_numbers,
        rules.short_files,
    ],
)
def test_the_product_keeps_the_rule(rule: Rule) -> None:
    found = rule(rules.product())
    assert not found, f"{len(found)} places:\n" + "\n".join(found)


def test_every_folder_is_looked_at() -> None:
    paths = rules.product()
    for place in rules.ROOMS:
        assert any(rules.within(path, {place}) for path in paths), place
    assert not any("templates" in path for path in paths)


@pytest.mark.parametrize("place", [*rules.LAZY, *rules.TABLES, *rules.NIR_ROOMS, *rules.NUMBERS])
def test_what_is_exempt_exists(place: str) -> None:
    assert (rules.ROOT / place).exists()


def places(found: list[str]) -> list[str]:
    """``file:line`` of each."""
    return [":".join(line.split(":")[:2]) for line in found]


def test_an_import_inside_a_function_is_seen() -> None:
    sources = {
        "stl_deploy/errors.py": "",
        "stl_deploy/formats/slow.py": "import nir\n",
        "stl_deploy/ir/a.py": "def f():\n    import json\n    import torch\n    from torch import nn\n",
        "stl_deploy/lower/b.py": "def f():\n    from stl_deploy.formats import slow\n    import numba\n",
        "hw_sim/c.py": "class A:\n    def f(self):\n        import numba\n",
        "stl_deploy/commands/d.py": (
            "def f():\n    from stl_deploy.formats import slow\n    from stl_deploy import errors\n"
            "    import warnings\n    import numpy\n"
        ),
        "stl_deploy/verify/e.py": "try:\n    import tomllib\nexcept ImportError:\n    tomllib = None\n",
    }
    assert places(rules.imports_at_the_top(sources)) == [
        "stl_deploy/commands/d.py:3",
        "stl_deploy/commands/d.py:4",
        "stl_deploy/ir/a.py:2",
        "stl_deploy/lower/b.py:2",
        "stl_deploy/lower/b.py:3",
    ]


def test_what_a_module_loads_is_found_through_all_that_it_imports() -> None:
    sources = {
        "stl_deploy/formats/__init__.py": "",
        "stl_deploy/formats/one.py": "from stl_deploy.formats.two import x\n",
        "stl_deploy/formats/two.py": "import h5py\nx = 1\n",
        "stl_deploy/formats/three.py": (
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import h5py\n"
        ),
    }
    loads = rules.Code(sources).loads
    assert "h5py" in loads["stl_deploy/formats/one.py"]
    assert "h5py" not in loads["stl_deploy/formats/three.py"]


def test_a_higher_room_and_circles_are_seen() -> None:
    sources = {
        "stl_deploy/ir/a.py": (
            "from typing import TYPE_CHECKING\nimport numpy\n\nif TYPE_CHECKING:\n"
            "    from stl_deploy.chips import b\n"
        ),
        "stl_deploy/chips/__init__.py": "",
        "stl_deploy/chips/b.py": "from stl_deploy.ir.a import x\n",
        "stl_deploy/lower/c.py": "def f():\n    import stl_deploy.exporters.d\n",
        "exporters/__init__.py": "",
        "exporters/d.py": "from stl_deploy.lower import c\n",
        "hw_sim/e.py": "from stl_deploy.hw_sim import f\n",
        "hw_sim/f.py": "import stl_deploy.hw_sim.e\n",
        "hw_sim/__init__.py": "",
        "hw_sim/__main__.py": "from stl_deploy.commands.hw_sim import main\n",
        "stl_deploy/commands/hw_sim.py": "",
        "stl_deploy/stray.py": "x = 1\n",
    }
    found = rules.no_higher_room(sources)
    assert sorted(set(places(found))) == [
        "exporters/d.py:1",
        "hw_sim/e.py:1",
        "hw_sim/f.py:1",
        "stl_deploy/ir/a.py:5",
        "stl_deploy/lower/c.py:2",
        "stl_deploy/stray.py:1",
    ]
    assert any("the higher room stl_deploy/chips" in line for line in found)
    assert any("a circle of rooms: exporters imports stl_deploy/lower" in line for line in found)
    assert any("a circle of modules: hw_sim/e.py imports hw_sim/f.py" in line for line in found)


KINDS = {
    "stl_deploy/ir/synapses.py": (
        "class Conv:\n    kind: Literal['conv'] = 'conv'\n\n\nclass Dense:\n    kind = 'dense'\n\n\n"
        "Synapses = Conv | Dense\n\n\nclass Kernel:\n    kind: str\n"
    ),
    "hw_sim/plans.py": "class LifPlan:\n    pass\n",
}


@pytest.mark.parametrize(
    "text",
    [
        "from stl_deploy.ir.synapses import Conv\nok = isinstance(x, Conv)\n",
        "from stl_deploy.ir.synapses import Conv as C\nok = isinstance(x, int | C)\n",
        "from stl_deploy.ir import synapses\nok = isinstance(x, (int, synapses.Dense))\n",
        "from stl_deploy.ir.synapses import Synapses\nok = isinstance(x, Synapses)\n",
        "from stl_deploy.ir.synapses import Conv\nok = issubclass(x, Conv)\n",
        "from stl_deploy.ir.synapses import Conv\nok = type(x) is Conv\n",
        "from stl_deploy.ir.synapses import Conv\nok = Conv == type(x)\n",
        "from stl_deploy.ir.synapses import Conv\nok = type(x) in (int, Conv)\n",
        "from stl_deploy.hw_sim.plans import LifPlan\nok = isinstance(x, LifPlan)\n",
        "import nir\nok = isinstance(x, nir.Conv2d)\n",
        "from nir import Conv2d\nok = isinstance(x, Conv2d)\n",
        "import nir\nok = isinstance(x, nir.ir.Conv2d)\n",
    ],
)
def test_a_type_test_is_seen(text: str) -> None:
    assert places(rules.no_type_tests({**KINDS, "exporters/a.py": text})) == ["exporters/a.py:2"]
    assert not rules.no_type_tests({**KINDS, "stl_deploy/ir/a.py": text})


def test_a_class_pattern_is_seen() -> None:
    text = (
        "from stl_deploy.ir.synapses import Conv, Dense\nmatch x:\n    case [Conv(), _]:\n        pass\n"
        "    case {'a': Dense()}:\n        pass\n    case int() | 'conv':\n        pass\n"
    )
    found = rules.no_type_tests({**KINDS, "models/a.py": text})
    assert places(found) == ["models/a.py:3", "models/a.py:5"]


def test_other_type_tests_are_not_counted() -> None:
    text = (
        "import nir\nfrom torch.nn import Conv2d as Conv\nfrom stl_deploy.ir.synapses import Kernel\n"
        "ok = isinstance(x, (int, Conv, Kernel, nir.NIRGraph)) or type(x) is Dense\n"
    )
    assert not rules.no_type_tests({**KINDS, "models/a.py": text})


@pytest.mark.parametrize(
    "text",
    [
        "x = 4095\n",
        "x = 4096.0\n",
        "N = 64\n",
        "x = y << 6\n",
        "x = y >> 12\n",
        "x = (y >> 6) + 1\n",
        "x <<= 6\n",
        "x = 2.0 ** 6\n",
        "x = 2 ** 12\n",
        "x = f(1 << 6)\n",
        "def f(du: int = 4095) -> None: ...\n",
        "ONE = UNIT << 6\n",
    ],
)
def test_a_number_of_the_arithmetic_is_seen(text: str) -> None:
    assert places(rules.no_numbers({"hw_sim/a.py": text})) == ["hw_sim/a.py:1"]
    assert not rules.no_numbers({"stl_deploy/chips/a.py": text, "stl_deploy/ir/units.py": text})


def test_other_numbers_are_not_counted() -> None:
    text = (
        '"""Decays count 1/4096."""\nSAMPLES = 1 << 6\nBITS: int = 1 << 12\nx = y << 5\nz = 3 ** 6\n'
        "w = f'{x} of 4096'\nv = y << bits\nu = True\n"
    )
    assert not rules.no_numbers({"hw_sim/a.py": text})


def test_a_long_file_is_seen() -> None:
    sources = {"hw_sim/a.py": "x = 1\n" * 600, "hw_sim/b.py": "x = 1\n" * 601}
    assert places(rules.short_files(sources)) == ["hw_sim/b.py:601"]
