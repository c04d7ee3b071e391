"""What ruff and mypy say of the sources: nothing."""

import importlib.util
import sys

import pytest
from processes import ran


@pytest.mark.parametrize("module, options", [("mypy", ["--cache-dir=/dev/null"]), ("ruff", ["check", "--no-cache", "."])])
def test_the_checkers_find_nothing(repo, module, options):
    if not importlib.util.find_spec(module):
        pytest.skip("NOT RUN: no %s here" % module)
    done = ran(sys.executable, "-m", module, *options, cwd=repo)
    assert done.returncode == 0, done.stdout + done.stderr
