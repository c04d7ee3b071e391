"""How large the product is, for CI to print: lines of tsm/, scripts, shell scripts and templates; places of them that refuse something."""

import ast
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
ERRORS = {"UserError", "Corrupt", "CannotRun", "Unsupported", "ArgumentTypeError"}  # that end in a line for the user
ENDS = {"fail", "error"}  # cli.fail(), and error() of an argument parser


def product():
    return sorted(path for pattern in ("*.py", "*.sh", "tsm/**/*.py", "tsm/**/templates/*") for path in REPO.glob(pattern))


def refusals(path):
    """How many places of a Python file raise such an error, or end the script with a line."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8")))) if path.suffix == ".py" else []
    raised = [node.exc.func for node in nodes if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)]
    called = [node.func for node in nodes if isinstance(node, ast.Call)]
    return sum(named(node) in ERRORS for node in raised) + sum(named(node) in ENDS for node in called)


def named(node):
    """The last part of a dotted name."""
    return getattr(node, "attr", getattr(node, "id", ""))


if __name__ == "__main__":
    lines = sum(len(path.read_bytes().splitlines()) for path in product())
    print("product: %d lines, %d refusals" % (lines, sum(map(refusals, product()))))
