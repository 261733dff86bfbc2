"""The package as others get it: a wheel that works outside the checkout, and light to import."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile

from tests.build.heavy import HEAVY
from tests.build.nets import ROOT


def test_the_wheel_has_every_module_and_imports_outside_the_checkout(tmp_path):
    # From a copy: setuptools would leave its build folder in the checkout, and find it stale later.
    copy = tmp_path / "copy"
    for folder in ("stl_deploy", "exporters", "hw_sim", "models"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", tmp_path, copy],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    names = {str(p.relative_to(tmp_path / "site")) for p in (tmp_path / "site").rglob("*.*")}
    for folder, prefix in (
        ("stl_deploy", ""),
        ("exporters", "exporters/"),
        ("hw_sim", "hw_sim/"),
        ("models", "models/"),
    ):
        for path in (ROOT / folder).rglob("*.py"):
            relative = path.relative_to(ROOT / folder)
            assert f"stl_deploy/{prefix}{relative}" in names, path
    for extra in (
        "chips/loihi2.toml",
        "consumers/current.txt",
        "consumers/nir104.txt",
        "lava/requirements.txt",
        "py.typed",
        "templates/nir_consumer.py",
        "templates/report.html.j2",
    ):
        assert f"stl_deploy/{extra}" in names
    script = (
        "import sys, pkgutil, importlib; sys.path.insert(0, sys.argv[1]); import stl_deploy\n"
        "assert stl_deploy.__file__.startswith(sys.argv[1]), stl_deploy.__file__\n"
        "found = list(pkgutil.walk_packages(stl_deploy.__path__, 'stl_deploy.'))\n"
        "for m in found:\n"
        "    if not m.name.endswith('__main__'): importlib.import_module(m.name)\n"
        "from stl_deploy import chip; chip.load('loihi1'); print(len(found))\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", script, str(tmp_path / "site")],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    assert int(done.stdout) >= 40


def test_import_is_light():
    script = f"import stl_deploy, sys; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == "[]"


def test_the_public_names_are_there():
    import stl_deploy

    assert all(callable(getattr(stl_deploy, name)) for name in stl_deploy.__all__)
