"""The layout that the READMEs describe, held against the sources: who may import whom, and how long things may get."""

import ast
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent
LAYERS = [  # from the ground up; an import goes to the same layer or to a lower one
    {"cli", "files", "layout", "machine", "npu", "shape", "stage"},
    {"protocol", "pyconfig", "config", "labels", "zoo", "fetch"},
    {"samples", "annotations", "results", "accuracy", "tensors"},
    {"frames", "captions", "clips", "workers"},
    {"onnxfile", "graph", "checkpoint", "network", "facts", "lift", "proof"},
    {"offline", "int8", "engine", "journal", "stream", "chunks", "chips", "cluster", "live", "predict", "preprocess", "findings", "gallery",
     "report", "reread", "compare", "blame", "page"},
]
ONLY_IN = {"torch": {"checkpoint", "network"}, "cv2": {"frames", "captions", "clips", "live"}, "ray": {"cluster"}}
LONGEST_SCRIPT, LONGEST_FUNCTION = 190, 60  # lines

SCRIPTS = sorted(path for path in REPO.glob("*.py"))
LIBRARY = sorted(path for path in REPO.glob("tsm/*.py") if path.stem != "__init__")
ASIDE = sorted(list(REPO.glob("bench/*.py")) + list(REPO.glob("demo/*.py")))


def imports(path):
    """The dotted names that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "%s: relative import" % path
            for alias in node.names:
                yield "%s.%s" % (node.module, alias.name)


def modules(path):
    """The modules of tsm that a file imports."""
    names = {name.split(".")[1] for name in imports(path) if name.split(".")[0] == "tsm"}
    return names - {"__version__"}


def test_every_module_has_its_layer():
    assert {path.stem for path in LIBRARY} <= set().union(*LAYERS)


@pytest.mark.parametrize("path", SCRIPTS + LIBRARY + ASIDE, ids=lambda path: str(path.relative_to(REPO)))
def test_scripts_are_no_library(path):
    """Nobody imports a script; what two scripts share is in tsm, what two benches share in their own folder."""
    ours = {script.stem for script in SCRIPTS} | {"test", "bench", "demo"}
    assert not {name.split(".")[0] for name in imports(path)} & ours


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: path.stem)
def test_an_arrow_only_goes_down(path):
    layer = {module: number for number, names in enumerate(LAYERS) for module in names}
    for module in modules(path):
        assert layer[module] <= layer[path.stem], "tsm.%s imports tsm.%s, which is above it" % (path.stem, module)


def test_there_is_no_cycle():
    arrows = {path.stem: modules(path) for path in LIBRARY}
    while arrows:
        leaves = [name for name, targets in arrows.items() if not targets & set(arrows)]
        assert leaves, "a cycle among tsm's modules: %s" % sorted(arrows)
        for name in leaves:
            del arrows[name]


@pytest.mark.parametrize("path", SCRIPTS + LIBRARY, ids=lambda path: path.stem)
def test_heavy_libraries_have_their_place(path):
    used = {name.split(".")[0] for name in imports(path)}
    for library, places in ONLY_IN.items():
        assert library not in used or path.parent.name == "tsm" and path.stem in places, "%s imports %s" % (path, library)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_is_read_from_top_to_bottom(path):
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert len(text.splitlines()) <= LONGEST_SCRIPT
    assert ast.get_docstring(tree) and text.startswith("#!/usr/bin/env python3\n")
    assert {"get_args", "main"} <= {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert text.endswith('\n\nif __name__ == "__main__":\n    run(main)\n')


@pytest.mark.parametrize("path", SCRIPTS + LIBRARY + ASIDE, ids=lambda path: str(path.relative_to(REPO)))
def test_no_function_is_long(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            end = max(getattr(inner, "lineno", 0) for inner in ast.walk(node))
            assert end - node.lineno < LONGEST_FUNCTION, "%s: %s has %d lines" % (path, node.name, end - node.lineno + 1)
