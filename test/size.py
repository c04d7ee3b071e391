"""How large the product is, for CI to print: lines of tsm/, scripts, shell scripts and templates; places of them that refuse
something; public names that mean several things.

    python3 test/size.py --names    which names these are, and where

A public name is one that a module or a script defines at its top level without an underscore before it: a function, a class, a
value. It means several things where several modules define it. The names that every script has (CONVENTIONS) do not count.
"""

import ast
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
ERRORS = {"UserError", "Corrupt", "CannotRun", "Unsupported", "ArgumentTypeError"}  # that end in a line for the user
CONVENTIONS = {"get_args", "main"}  # what a script, or a module that is run as one, consists of
ENDS = {"fail", "error"}  # cli.fail(), and error() of an argument parser


def product():
    return sorted(path for pattern in ("*.py", "*.sh", "tsm/**/*.py", "tsm/**/templates/*") for path in REPO.glob(pattern))


def refusals(path):
    """How many places of a Python file raise such an error, or end the script with a line."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8")))) if path.suffix == ".py" else []
    raised = [node.exc.func for node in nodes if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)]
    called = [node.func for node in nodes if isinstance(node, ast.Call)]
    return sum(named(node) in ERRORS for node in raised) + sum(named(node) in ENDS for node in called)


def names():
    """{name: where it is defined} of the public names that several modules define."""
    found = {}
    for path in product():
        for node in ast.parse(path.read_text(encoding="utf-8")).body if path.suffix == ".py" else []:
            targets = getattr(node, "targets", [getattr(node, "target", node)])
            for target in [one for given in targets for one in getattr(given, "elts", [given])]:
                name = getattr(target, "name", getattr(target, "id", "_"))
                if not name.startswith("_") and name not in CONVENTIONS:
                    found.setdefault(name, []).append("%s:%d" % (path.relative_to(REPO), node.lineno))
    return {name: places for name, places in sorted(found.items()) if len(places) > 1}


def named(node):
    """The last part of a dotted name."""
    return getattr(node, "attr", getattr(node, "id", ""))


if __name__ == "__main__":
    lines = sum(len(path.read_bytes().splitlines()) for path in product())
    print("product: %d lines, %d refusals, %d names of several meanings" % (lines, sum(map(refusals, product())), len(names())))
    for name, places in names().items() if "--names" in sys.argv else ():
        print(name, *places)
