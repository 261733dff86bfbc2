"""The package as others get it: a wheel that works outside the checkout, and light to import."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.build.heavy import HEAVY
from tests.build.nets import ROOT

FOLDERS = ("stl_deploy", "exporters", "hw_sim", "models")


@dataclass(frozen=True)
class Installed:
    """A copy of the checkout, and the site-packages of a plain install from it."""

    checkout: Path
    site: Path


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    # From a copy: setuptools would leave its build folder in the checkout, and find it stale later.
    home = tmp_path_factory.mktemp("installed")
    copy, site = home / "copy", home / "site"
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", home, copy],
        check=True,
        capture_output=True,
    )
    (wheel,) = home.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    shutil.rmtree(copy / "build", ignore_errors=True)
    return Installed(copy, site)


def test_the_wheel_has_every_module_and_imports_outside_the_checkout(installed, tmp_path):
    site = installed.site
    names = {str(p.relative_to(site)) for p in site.rglob("*.*")}
    for folder in FOLDERS:
        prefix = "" if folder == "stl_deploy" else f"{folder}/"
        for path in (ROOT / folder).rglob("*.py"):
            assert f"stl_deploy/{prefix}{path.relative_to(ROOT / folder)}" in names, path
    for extra in (
        "backends/consumers/current.txt",
        "backends/consumers/nir104.txt",
        "backends/consumers/templates/nir_consumer.py",
        "backends/lava.txt",
        "chips/loihi2.toml",
        "exporters/templates/lava_network.py",
        "py.typed",
        "report/template.html.j2",
    ):
        assert f"stl_deploy/{extra}" in names
    script = (
        "import sys, pkgutil, importlib; sys.path.insert(0, sys.argv[1]); import stl_deploy\n"
        "assert stl_deploy.__file__.startswith(sys.argv[1]), stl_deploy.__file__\n"
        "found = list(pkgutil.walk_packages(stl_deploy.__path__, 'stl_deploy.'))\n"
        "for m in found:\n"
        "    if not m.name.endswith('__main__'): importlib.import_module(m.name)\n"
        "from stl_deploy.chips import facts; facts.load('loihi1'); print(len(found))\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", script, str(site)],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    assert int(done.stdout) >= 40


def test_a_plain_install_imports_in_the_root_of_a_checkout(installed):
    """There the checkout's folder stl_deploy goes before the installed one, and lacks hw_sim."""
    # Without `site`, so that the editable install these tests run on does not lend its rooms.
    script = (
        "import sys; sys.path += sys.argv[1:]\n"
        "import stl_deploy, stl_deploy.exporters, stl_deploy.hw_sim.reference, stl_deploy.models\n"
        "from stl_deploy import export, quantize\n"
        "for name in ('', '.exporters', '.hw_sim.reference', '.models', '.chips.facts'):\n"
        "    print(sys.modules['stl_deploy' + name].__file__)\n"
    )
    borrowed = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    done = subprocess.run(
        [sys.executable, "-S", "-c", script, installed.site, *borrowed],
        cwd=installed.checkout,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    files = [Path(line).relative_to(installed.checkout) for line in done.stdout.splitlines()]
    assert list(map(str, files)) == [
        "stl_deploy/__init__.py",
        "exporters/__init__.py",
        "hw_sim/reference.py",
        "models/__init__.py",
        "stl_deploy/chips/facts.py",
    ]


def test_an_installed_package_looks_for_its_rooms_nowhere_else(installed):
    """Where the rooms are inside, what stands next to the package is not taken for one of them."""
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); import stl_deploy; print(stl_deploy.__path__)"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-P", "-c", script, installed.site],
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == str([str(installed.site / "stl_deploy")])


def test_import_is_light():
    script = f"import stl_deploy, sys; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["check", "export", "hw_sim", "join", "parity", "raster", "train"])
def test_help_is_light(name):
    """What --help needs: the module of the command, which also makes its options."""
    heavy = {*HEAVY, "aedat", "uv", "snntorch"} - {"pydantic", "rich", "typer"}
    script = (
        f"import stl_deploy.commands.{name}, sys\n"
        f"print([m for m in {sorted(heavy)!r} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == "[]"


def test_the_public_names_are_there():
    import stl_deploy

    values = {name: getattr(stl_deploy, name) for name in stl_deploy.__all__}
    assert isinstance(values.pop("__version__"), str)
    assert all(map(callable, values.values()))
