"""The layout that the READMEs describe, held against the sources: who may import whom, and how long things may get."""

import ast
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent
TREE = {  # folder of tsm/: its modules, from the ground up
    "": {"cli", "files", "machine", "workers", "protocol", "labels", "samples", "results", "workfolder"},
    "checkpoint": {"reader", "pyconfig", "config", "published", "identify"},
    "video": {"frames", "decode", "clips", "windows", "datasets"},
    "chain": {"stage", "npu", "plan", "tune"},
    "model": {"network", "onnxfile", "graph", "surgery", "proof", "offline", "aipp"},
    "infer": {"engine", "int8", "tensors", "preprocess", "journal", "lists", "ascend", "cluster"},
    "report": {"findings", "collect", "page", "compare", "diagnose", "suspects"},
    "predict": {"inputs", "answers", "by_clip", "by_frame", "live", "captions"},
}
GROUND = {"cli", "files", "machine", "workers"}  # of the modules that stand in no folder; the others travel between scripts
FLOORS = [{"checkpoint", "video", "chain"}, {"model"}, {"infer"}, {"report"}, {"predict"}]  # an arrow goes within a folder, or down
ONLY_IN = {  # a library: the modules, or folders, that may import it
    "torch": {"checkpoint.reader", "checkpoint.published", "model.network"}, "cv2": {"video", "predict"}, "ray": {"infer.cluster"},
    "av": {"video", "predict"}, "decord": {"video.decode"},
}
LONGEST_SCRIPT, LONGEST_FUNCTION = 190, 60  # lines

SCRIPTS = sorted(path for path in REPO.glob("*.py"))
LIBRARY = sorted(path for path in REPO.glob("tsm/**/*.py") if path.stem != "__init__")
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


def name_of(path):
    """tsm/video/frames.py -> video.frames"""
    return ".".join(path.relative_to(REPO / "tsm").with_suffix("").parts)


def modules(path):
    """The modules of tsm that a file imports, as name_of() calls them."""
    known = {name_of(one) for one in LIBRARY}
    words = [name.split(".") for name in imports(path) if name.startswith("tsm.")]
    return {".".join(parts[1:end]) for parts in words for end in (2, 3) if ".".join(parts[1:end]) in known}


def floor_of(module):
    folder, _, name = module.rpartition(".")
    if not folder:
        return 0 if name in GROUND else 1
    return 2 + next(number for number, folders in enumerate(FLOORS) if folder in folders)


def test_the_tree_is_as_it_is_described():
    found = {}
    for path in LIBRARY:
        found.setdefault(path.parent.name if path.parent != REPO / "tsm" else "", set()).add(path.stem)
    assert found == TREE


@pytest.mark.parametrize("path", SCRIPTS + LIBRARY + ASIDE, ids=lambda path: str(path.relative_to(REPO)))
def test_scripts_are_no_library(path):
    """Nobody imports a script; what two scripts share is in tsm, what two benches share in their own folder."""
    ours = {script.stem for script in SCRIPTS} | {"test", "bench", "demo"}
    assert not {name.split(".")[0] for name in imports(path)} & ours


@pytest.mark.parametrize("path", LIBRARY, ids=name_of)
def test_an_arrow_only_goes_down(path):
    here = name_of(path)
    for module in modules(path):
        same = here.rpartition(".")[0] == module.rpartition(".")[0]
        assert same and floor_of(module) <= floor_of(here) or floor_of(module) < floor_of(here), "%s imports %s" % (here, module)


def test_what_starts_twice_for_every_stage_starts_quickly():
    files, left = {}, [REPO / "tsm/chain/stage.py"]
    while left:
        path = left.pop()
        files[path] = set(imports(path))
        left += [one for one in LIBRARY if name_of(one) in modules(path) and one not in files]
    assert len(files) > 3 and not [path for path, names in files.items() if any(name.split(".")[0] == "numpy" for name in names)]


def test_there_is_no_cycle():
    arrows = {name_of(path): modules(path) for path in LIBRARY}
    while arrows:
        leaves = [name for name, targets in arrows.items() if not targets & set(arrows)]
        assert leaves, "a cycle among tsm's modules: %s" % sorted(arrows)
        for name in leaves:
            del arrows[name]


@pytest.mark.parametrize("path", SCRIPTS + LIBRARY, ids=lambda path: str(path.relative_to(REPO)))
def test_heavy_libraries_have_their_place(path):
    used = {name.split(".")[0] for name in imports(path)}
    here = name_of(path) if path in LIBRARY else ""
    for library, places in ONLY_IN.items():
        assert library not in used or {here, here.split(".")[0]} & places, "%s imports %s" % (path, library)


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
