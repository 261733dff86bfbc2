"""The pytest fixture ``stl_parity``: parity within the budgets of ``[tool.stl-deploy.parity]``.

    def test_parity(stl_parity):
        stl_parity()

Everything heavy is imported by the first test that uses it; pytest loads this module at every start.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from stl_deploy.errors import StlError

if TYPE_CHECKING:
    from stl_deploy.verify.check import Outcome

OPTION = "stl_parity_config"


def pytest_addoption(parser: pytest.Parser) -> None:
    """The ini option that names another pyproject.toml."""
    parser.addini(
        OPTION,
        "file with the table [tool.stl-deploy.parity], relative to the root folder",
        default="pyproject.toml",
    )


@pytest.fixture
def stl_parity(request: pytest.FixtureRequest) -> Callable[..., Outcome]:
    """Compare as the table says: ``stl_parity()``, or ``stl_parity(limit=100, max_mismatch=0.01)``.

    Arguments are the keys of the table with underscores, and go before it. What was measured is recorded
    as properties ``stl_parity.*`` of the test, which ``--junitxml`` writes. The test fails, with the first
    divergence in words, where parity does; else the outcome is returned.
    """

    def record(name: str, value: Any) -> None:
        # What record_property does, without its warning that no schema knows of properties.
        request.node.user_properties.append((f"stl_parity.{name}", value))

    def check(**given: Any) -> Outcome:
        from stl_deploy.verify import budgets
        from stl_deploy.verify import check as parity_check

        config = request.config.rootpath / request.config.getini(OPTION)
        try:
            table = budgets.read(config)
            outcome = parity_check.run(parity_check.settings(table, config, given))
        except StlError as error:
            record("passed", False)
            problems = "\n".join(f"  {problem}" for problem in error.problems)
            pytest.fail(f"parity could not be checked:\n{problems}", pytrace=False)
        for name, value in outcome.properties().items():
            record(name, value)
        if not outcome.passed:
            pytest.fail(outcome.text, pytrace=False)
        return outcome

    return check
