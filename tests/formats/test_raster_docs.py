"""docs/rasters.md: its examples run as they stand, and the files that they write are rasters."""

from __future__ import annotations

import importlib.util
import re
import warnings

import numpy as np
import pytest

import stl_deploy
from stl_deploy.data import events
from stl_deploy.errors import InputError, UncheckedWarning
from stl_deploy.formats import raster, raster_values
from stl_deploy.formats.raster import check_fits, load
from stl_deploy.ir.units import MAX_SIGNED, MAX_UNSIGNED
from tests.build.nets import ROOT

PAGE = (ROOT / "docs" / "rasters.md").read_text("utf-8")
BLOCK = re.compile(r"(<!-- needs tonic -->\n)?```python\n(.*?)```", re.S)


@pytest.fixture(scope="module")
def after(tmp_path_factory):
    """The folder in which the examples ran, and their names."""
    folder = tmp_path_factory.mktemp("page")
    tonic = importlib.util.find_spec("tonic") is not None
    example = "".join(code for needs, code in BLOCK.findall(PAGE) if tonic or not needs)
    names = {"__name__": "page"}
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.chdir(folder)
        warnings.simplefilter("error", UncheckedWarning)
        exec(compile(example, "rasters.md", "exec"), names)
    return folder, names


def test_the_files_of_the_examples_are_rasters(after):
    folder, names = after
    written = {path.name for path in folder.glob("*.npz")}
    assert written >= {"test.npz", "bernoulli.npz", "rate.npz", "held.npz"}
    for path in sorted(folder.glob("*.npz")):
        made = load(path)
        assert made.labels is not None
        shape = (2, 8, 8) if path.name in ("events.npz", "counts.npz") else (1, 8, 8)
        assert made.shape[2:] == shape
        if made.held:
            assert (path.name, made.shape[1]) == ("held.npz", 1)
        elif shape == (1, 8, 8):
            check_fits(made, str(path), names["network"])
        else:
            assert made.shape[:2] == (6, 5)
            assert made.spikes.max() == 1 or path.name == "counts.npz"


def test_the_axes_of_the_table(after):
    """What the page says to do about each shape is what the errors say."""
    _, names = after
    network, spikes = names["network"], np.zeros((6, 5, 1, 8, 8), np.uint8)
    for given, code in (
        (spikes.swapaxes(0, 1), "spikes.swapaxes(0, 1)"),
        (spikes[0], "spikes[None]"),
        (spikes[:, 0, 0], "np.repeat(spikes[:, None], T, axis=1)"),
    ):
        with pytest.raises(InputError) as error:
            stl_deploy.simulate(network, given)
        assert code.replace("T,", "5,") in error.value.problems[0].remedy
        assert f"`{code}`" in PAGE


def test_the_limits_of_the_page():
    assert f"at most {MAX_UNSIGNED} " in PAGE
    assert f"at most {MAX_SIGNED} " in PAGE
    assert (ROOT / raster_values.PAGE).exists()
    assert raster.PAGE == raster_values.PAGE
    assert "--sort" in (ROOT / "docs" / "data.md").read_text()
    assert f"Up to {events.SLACK // 1000} ms late" in (ROOT / "docs" / "data.md").read_text()
