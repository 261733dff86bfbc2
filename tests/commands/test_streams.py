"""Standard streams that are closed, full, cut off or ASCII: the exit code is that of the work."""

from __future__ import annotations

import subprocess
import sys

import pytest

# A command that says a word, prints a table and ends as its argument says.
COMMAND = """
import sys
from stl_deploy.commands import common
from stl_deploy.errors import InputError, LoweringError, Problem

def command(path: str, end: str = "well", as_json: bool = False, debug: bool = False) -> None:
    for _ in range(2_000):
        common.table("table", ("name", "value"), [(path, "1")])
    if as_json:
        common.print_json({"out": "x" * 100_000})
    if end == "badly":
        raise LoweringError(Problem(path, "cannot be lowered"))
    open("done", "w").close()

common.run(command, "command")
"""


@pytest.fixture
def ran(tmp_path):
    """Run the command by a line of bash; exit code and stderr."""
    (tmp_path / "command.py").write_text(COMMAND)

    def run(line, **environment):
        done = subprocess.run(
            [
                "bash",
                "-c",
                f"set -o pipefail; {line.replace('RUN', f'{sys.executable} command.py')}",
            ],
            cwd=tmp_path,
            env={"PATH": "/usr/bin:/bin", "PYTHONIOENCODING": "utf-8", **environment},
            capture_output=True,
            text=True,
            timeout=120,
        )
        return done.returncode, done.stderr, (tmp_path / "done").exists()

    return run


@pytest.mark.parametrize(
    "line",
    [
        *("RUN net >&-", "RUN net 2>&-", "RUN net <&- >&- 2>&-", "RUN net | head -1 >&2"),
        *("RUN net --as-json | head -c 1 >&2", "RUN --help | head -1 >&2", "RUN net 2>/dev/full"),
    ],
)
def test_a_stream_that_nobody_reads_changes_nothing(ran, line):
    code, err, done = ran(line)
    assert code == 0
    assert done or "--help" in line
    assert "Traceback" not in err
    assert "Exception ignored" not in err


@pytest.mark.parametrize("end", [">&-", "2>&-", "| head -1 >&2", "2>/dev/full", ">/dev/full"])
def test_the_exit_code_is_still_that_of_the_work(ran, end):
    assert ran(f"RUN net --end badly {end}")[0] == 1


@pytest.mark.parametrize("options", ["", "--as-json"])
def test_a_full_stdout_is_told(ran, options):
    code, err, done = ran(f"RUN net {options} >/dev/full")
    assert (code, done) == (2, True)
    assert err == "command: stdout: cannot be written: No space left on device\n"


@pytest.mark.parametrize("end", ["well", "badly"])
@pytest.mark.parametrize(("name", "encoding"), [("n\\xc3\\xa9t", "ascii"), ("n\\xfft", "utf-8")])
def test_any_path_can_be_printed(ran, name, encoding, end):
    code, err, _ = ran(f"RUN $'{name}' --end {end} | cat >/dev/null", PYTHONIOENCODING=encoding)
    assert code == (end == "badly")
    assert "internal error" not in err


def test_a_closed_stream_is_not_given_to_a_file(ran, tmp_path):
    """What a library prints on descriptor 1 must not land in the file that is opened next."""
    code = COMMAND.replace('"w").close()', '"w").flush(); import os; os.write(1, b"noise")')
    (tmp_path / "command.py").write_text(code)
    assert ran("RUN net >&-")[::2] == (0, True)
    assert (tmp_path / "done").read_bytes() == b""
