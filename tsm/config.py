"""Facts from an mmaction2 config, a Python file or the text of one kept in a checkpoint. Nothing in it is executed.

The text is parsed (ast) and only its values are worked out: literals, dict(...), names assigned before, `**name`, sums of
plain values, `name.update(…)`, `_base_` files and `_delete_`, as mmcv's and mmengine's Config take them. Any other value
becomes a Code, and only one in a place that is asked for is an error; so is a statement that could change what was read.
Sources: mmaction2 0.24.1 and 1.2.0, configs/recognition/tsm.
"""

import argparse
import ast
import os
import re
import warnings
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

from tsm.cli import UserError
from tsm.protocol import frame_template, not_colours, not_whole, shown

_LIMIT = 1 << 18  # characters of a config and its bases, items or characters of a value made of others
_FILES = 100  # of a config, its bases counted as often as they are included
_DEPTH = 20  # of dicts in dicts
_SILENT = 8  # num_segments and shift_div of ResNetTSM, MobileNetV2TSM and TSMHead where a config gives none
_ANY = object()
_PASSED_OVER = (  # steps of a test pipeline that decode or hand over, and choose nothing
    "DecordInit", "DecordDecode", "OpenCVInit", "OpenCVDecode", "PyAVInit", "PyAVDecode", "RawFrameDecode", "Collect", "ToTensor",
    "PackActionInputs",
)
_CROPS = {"CenterCrop": "centre", "ThreeCrop": "three", "TenCrop": "ten"}
_STEPS: Dict[str, Dict[str, Any]] = {  # the others, and their arguments: the one value that is understood, or _ANY
    "SampleFrames": dict(clip_len=1, frame_interval=1, num_clips=_ANY, twice_sample=_ANY, test_mode=True, temporal_jitter=False,
                         out_of_bound_opt="loop", keep_tail_frames=False, start_index=_ANY),
    "DenseSampleFrames": dict(clip_len=1, frame_interval=1, num_clips=_ANY, sample_range=64, num_sample_positions=10,
                              test_mode=True, temporal_jitter=False, out_of_bound_opt="loop", start_index=_ANY),
    "Resize": dict(scale=_ANY, keep_ratio=True, interpolation="bilinear", lazy=False),
    "Flip": dict(flip_ratio=0, direction=_ANY, lazy=False),
    "Normalize": dict(mean=_ANY, std=_ANY, to_bgr=False, adjust_magnitude=False),
    "FormatShape": dict(input_format="NCHW", collapse=False),
    **{name: dict(crop_size=_ANY, lazy=False) for name in _CROPS},
}
_LEFT_OUT: Dict[str, Any] = dict(  # what mmaction2 takes where an argument is left out, if that is not understood; None: an error
    clip_len=None, test_mode=False, scale=None, crop_size=None, flip_ratio=0.5, mean=None, std=None, input_format=None)
_RANKS = {  # of the steps that have an order
    "SampleFrames": 0, "DenseSampleFrames": 0, "Resize": 1, **dict.fromkeys(_CROPS, 2), "Normalize": 3, "FormatShape": 4}
_NEEDED = ("SampleFrames or DenseSampleFrames", "Resize", "CenterCrop, ThreeCrop or TenCrop")  # by their rank


class Unsupported(UserError):
    """A config that asks for what this suite does not do, or that only running it would tell."""


class Code(NamedTuple):
    """A value that only running the config would give."""

    place: str  # file and line
    what: str


def read(path: str) -> Dict[str, Any]:
    """The names that a config file assigns, its `_base_` files merged in.

    Raises: UserError, naming the file, where it or a base of it is missing, is not Python, or includes itself.
    """
    return _read(path, _Reading((), []))


def parse(text: str, where: str) -> Dict[str, Any]:
    """The same of a config's text as mmaction2 keeps it in a checkpoint; `where` names it in errors.

    Older versions kept the texts of the bases and of the config one after the other, each under its file's name.
    """
    config: Dict[str, Any] = {}
    parts = re.split(r"(?m)^[\w.~-]*/[\w.~/-]+\.py$", text) if len(text) <= _LIMIT else []
    if not 1 <= len(parts) <= _FILES:
        raise UserError("%s: too long for a config" % where)
    for part in parts:
        config = _names(part.encode("utf-8", "replace"), where, None, _Reading((), []), config)
    return config


def facts(config: Dict[str, Any], where: str) -> Dict[str, Any]:
    """What a config says of a network and its test; facts that it is silent about are left out.

    Returns: network (in words, as tsm.facts names it), classes, segments, head_segments (those that the head averages),
        shift_div, average_clips; of the test: sampling, sampled (frames of a sample), crops, short_side, size, mean, std,
        filename_tmpl, start_index.
    Raises: UserError that names `where` and the value that is none; Unsupported for code in place of a value, an unknown step.
    """
    found: Dict[str, Any] = {"network": _network(config, where)}
    found["classes"] = _number("classes", config, where, "model", "cls_head", "num_classes")
    is_tsm = str(found["network"]).startswith("TSM")
    silent = _SILENT if is_tsm else None
    found["head_segments"] = _number("segments", config, where, "model", "cls_head", "num_segments")
    own = _number("segments", config, where, "model", "backbone", "num_segments")
    found["segments"] = own or found["head_segments"] or silent
    found["shift_div"] = _number("shift_div", config, where, "model", "backbone", "shift_div") or silent
    found["average_clips"] = _first(config, where, ("model", "cls_head", "average_clips"), ("model", "test_cfg", "average_clips"),
                                    ("test_cfg", "average_clips"))
    if found["average_clips"] not in (None, "prob", "score"):
        raise Unsupported("%s: average_clips = %s; prob and score are known" % (where, shown(found["average_clips"])))
    for name in ("filename_tmpl", "start_index"):
        found[name] = _first(config, where, ("data", "test", name), ("test_dataloader", "dataset", name))
        wrong = "" if found[name] is None else not_whole(name, found[name]) if name == "start_index" else _no_template(found[name])
        if wrong:
            raise UserError("%s: %s = %s" % (where, name, wrong))
    if is_tsm or found["network"] is None:
        found.update(_test_pipeline(config, where))
    return {name: value for name, value in found.items() if value is not None}


def _no_template(value: Any) -> str:
    """What is wrong with a filename_tmpl; empty where nothing is."""
    try:
        frame_template(value if isinstance(value, str) else "")
        return ""
    except argparse.ArgumentTypeError:
        return "%s; a file name with one number in it is needed, as img_{:05}.jpg" % shown(value)


def _network(config: Dict[str, Any], where: str) -> Optional[str]:
    """The network in words."""
    kind = _get(config, where, "model", "backbone", "type")
    if kind is None:
        return None
    known = {"MobileNetV2TSM": "TSM MobileNetV2", "MobileOneTSM": "TSM MobileOne", "ResNet3dSlowFast": "SlowFast"}
    if kind not in ("ResNetTSM", "ResNet"):
        return known.get(shown(kind), "%s of mmaction2" % shown(kind))
    depth = _number("depth", config, where, "model", "backbone", "depth")
    names = ("is_shift", "non_local", "temporal_pool", "shift_place")
    is_shift, non_local, temporal_pool, place = (_get(config, where, "model", "backbone", name) for name in names)
    shifted = kind == "ResNetTSM" and is_shift is not False
    extras = [" with non-local blocks"] if non_local else []
    extras += [" with temporal pooling"] if temporal_pool else []
    extras += [" with whole blocks shifted"] if shifted and place not in (None, "blockres") else []
    return "%s ResNet-%s%s" % ("TSM" if shifted else "TSN", depth or 50, "".join(extras))


def _test_pipeline(config: Dict[str, Any], where: str) -> Dict[str, Any]:
    """What the test pipeline shows the network."""
    steps = _first(config, where, ("data", "test", "pipeline"), ("test_dataloader", "dataset", "pipeline"), ("test_pipeline",))
    found: Dict[str, Any] = {}
    if steps is not None and not isinstance(steps, (list, tuple)):
        raise UserError("%s: its test pipeline is %s; a list of steps is needed" % (where, shown(steps)))
    if steps is not None:
        kinds: List[str] = []
        for step in steps:
            found.update(_step(step, found, where))
            kind = step["type"]
            if kind in _RANKS:
                if kinds and _RANKS[kinds[-1]] > _RANKS[kind]:
                    raise Unsupported("%s: its test pipeline has the step %s after %s, an order that this suite does not know"
                                      % (where, kind, kinds[-1]))
                kinds.append(kind)
        for rank, needed in enumerate(_NEEDED):
            if rank not in map(_RANKS.__getitem__, kinds):
                raise Unsupported("%s: its test pipeline has no step %s; this suite needs one" % (where, needed))
    for place in (("model", "data_preprocessor"), ("module_hooks",)):
        given = _get(config, where, *place)
        for item in given if isinstance(given, list) else [given]:
            if isinstance(item, dict) and item.get("to_rgb"):
                raise Unsupported("%s: %s has to_rgb = %s, which this suite does not know" % (
                    where, ".".join(place), shown(item["to_rgb"])))
            if isinstance(item, dict) and "mean" in item and "std" in item:
                found.setdefault("mean", _triple(item["mean"], where, "mean"))
                found.setdefault("std", _triple(item["std"], where, "std"))
    return found


def _step(step: Any, before: Dict[str, Any], where: str) -> Dict[str, Any]:
    """What one step of a test pipeline decides."""
    _refuse_code(step, where)
    if not isinstance(step, dict):
        raise UserError("%s: its test pipeline has the step %s, which is no dict(type=…)" % (where, shown(step)))
    kind = step.get("type")
    _refuse_code(kind, where)
    if kind in _PASSED_OVER:
        return {}
    if not isinstance(kind, str) or kind not in _STEPS:
        raise Unsupported("%s: its test pipeline has the step %s, which this suite does not know" % (where, shown(kind)))
    given = {name: value for name, value in _LEFT_OUT.items() if name in _STEPS[kind]}
    for name, value in dict(given, **step).items():
        _refuse_code(value, where)
        known = _STEPS[kind].get(name)
        if name not in step and value is None:
            raise UserError("%s: the step %s of its test pipeline has no %s" % (where, kind, name))
        if name != "type" and known is not _ANY and (name not in _STEPS[kind] or value != known):
            raise Unsupported("%s: the step %s of its test pipeline has %s = %s%s, which this suite does not know"
                              % (where, kind, name, shown(value), "" if name in step else " (as it is left out)"))
    decides: Dict[str, Any] = {}
    if kind in ("SampleFrames", "DenseSampleFrames"):
        dense, twice = kind == "DenseSampleFrames", step.get("twice_sample", False)
        decides = {"sampled": step.get("num_clips", 1), "sampling": "dense" if dense else "twice" if twice else "uniform"}
    elif kind == "Resize":
        sides = [side for side in _sequence(step.get("scale")) if side != -1]
        decides = {"short_side": sides[0] if len(sides) == 1 else None}
    elif kind in _CROPS:
        sides = list(_sequence(step.get("crop_size"))) or [step.get("crop_size")]
        decides = {"crops": _CROPS[kind], "size": sides[0] if sides.count(sides[0]) == len(sides) else None}
    elif kind == "Normalize":
        decides = {name: _triple(step.get(name), where, name) for name in ("mean", "std")}
    for name, value in decides.items():
        whole = {"sampled": "segments", "short_side": "short_side", "size": "size"}.get(name)
        wrong = not_whole(whole, value) if whole and value is not None else ""
        if wrong:
            raise UserError("%s: the step %s of its test pipeline (%s): %s" % (where, kind, _words(step), wrong))
        if name in before or value is None:
            raise Unsupported("%s: the step %s of its test pipeline (%s) is not understood" % (where, kind, _words(step)))
    return decides


def _words(step: Dict[str, Any]) -> str:
    return ", ".join("%s=%s" % (name, shown(value)) for name, value in step.items() if name != "type")[:200]


def _sequence(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) and not isinstance(value, Code) else ()


def _triple(value: Any, where: str, name: str) -> Tuple[float, ...]:
    _refuse_code(value, where)
    wrong = not_colours(name, value)
    if wrong:
        raise UserError("%s: %s = %s" % (where, name, wrong))
    return tuple(map(float, value))


def _refuse_code(value: Any, where: str) -> None:
    for item in [value] + list(_sequence(value)):
        if isinstance(item, Code):
            raise Unsupported("%s: %s is not run, and a value that is needed depends on it; write the value itself there"
                            % (item.place, item.what))


def _get(config: Any, where: str, *keys: str) -> Any:
    """The value at model.backbone.depth and the like; None where there is none."""
    for key in keys:
        _refuse_code(config, where)
        config = config.get(key) if isinstance(config, dict) else None
    _refuse_code(config, where)
    return config


def _first(config: Any, where: str, *places: Tuple[str, ...]) -> Any:
    values = (_get(config, where, *place) for place in places)
    return next((value for value in values if value is not None), None)


def _number(name: str, config: Any, where: str, *keys: str) -> Optional[int]:
    """The value at model.backbone.depth and the like, within the bounds of `name`; None where there is none."""
    value = _get(config, where, *keys)
    wrong = "" if value is None else not_whole(name, value)
    if wrong:
        raise UserError("%s: %s = %s" % (where, ".".join(keys), wrong))
    return value


# From a text to the values of its names.


class _Reading(NamedTuple):
    """Which files are being read, each the base of the one before, and the sizes of all that were read."""

    chain: Tuple[str, ...]
    sizes: List[int]


def _read(path: str, reading: _Reading) -> Dict[str, Any]:
    place = os.path.realpath(path)
    if place in reading.chain:
        raise UserError("%s: includes itself through _base_; mend the config" % path)
    if not os.path.isfile(path):
        based = ", which %s is based on" % reading.chain[-1] if reading.chain else ""
        raise UserError("%s: no such config%s; check the path" % (path, based))
    with open(path, "rb") as file:
        raw = file.read(_LIMIT + 1)
    reading.sizes.append(len(raw))
    if sum(reading.sizes) > _LIMIT or len(reading.sizes) > _FILES:
        raise UserError("%s: too long for a config, or with too many bases (at most %d characters in %d files)" % (path, _LIMIT, _FILES))
    return _names(raw, path, os.path.dirname(path), _Reading(reading.chain + (place,), reading.sizes), {})


def _base(name: Any, where: str, folder: str, reading: _Reading) -> Dict[str, Any]:
    """The names of the base that a config in `folder` calls `name`."""
    if "::" in str(name):
        raise UserError("%s: is based on %s, of an installed package, where this suite does not look; copy that file and name the "
                        "copy's path there" % (where, str(name)[:200]))
    return _read(os.path.join(folder, str(name)), reading)


def _names(raw: bytes, where: str, folder: Optional[str], reading: _Reading, base: Dict[str, Any]) -> Dict[str, Any]:
    """The values of the names that a config's text assigns, over those of `base`; `folder` is what its `_base_` files are
    relative to, if known."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in its strings
            tree = ast.parse(raw)
        for statement in tree.body:
            if isinstance(statement, ast.Assign) and [getattr(target, "id", "") for target in statement.targets] == ["_base_"]:
                given = _value(statement.value, {}, where)
                _refuse_code(given, where)
                for name in [given] if isinstance(given, str) else _sequence(given):
                    if folder is not None:
                        base = _merged(_base(name, where, folder, reading), base)
        names: Dict[str, Any] = {"_base_": base}
        for statement in tree.body:
            _carry_out(statement, names, where, folder, reading)
        del names["_base_"]
        return _merged(names, base)
    except SyntaxError as error:
        raise UserError("%s: not a config in Python (line %s: %s)" % (where, error.lineno, error.msg))
    except (ValueError, RecursionError, MemoryError):
        raise UserError("%s: not a config in Python" % where)


def _merged(
    child: Dict[str, Any], base: Dict[str, Any], depth: int = 0, done: Optional[Dict[Tuple[int, int], Dict[str, Any]]] = None
) -> Dict[str, Any]:
    """A config over its base, as mmcv's Config merges them: dicts key by key, unless the child's has `_delete_`.

    `done` holds what was merged before, as one dict may stand in many places.
    """
    if depth > _DEPTH:
        raise ValueError("too deep")
    done = {} if done is None else done
    pair = (id(child), id(base))
    if pair not in done:
        merged = dict(base)
        for key, value in child.items():
            if isinstance(value, dict):
                below = base.get(key)
                if isinstance(below, dict) and not value.get("_delete_"):
                    value = _merged(value, below, depth + 1, done)
                else:
                    value = {name: item for name, item in value.items() if name != "_delete_"}
            if key != "_delete_":
                merged[key] = value
        done[pair] = merged
    return done[pair]


def _carry_out(statement: ast.stmt, names: Dict[str, Any], where: str, folder: Optional[str], reading: _Reading) -> None:
    """Take in one statement: an assignment, an update of a dict, an import of bases, a definition.

    Raises: Unsupported where it is another, which could change what is read.
    """
    if isinstance(statement, ast.ImportFrom):  # a class is known by its name
        names.update((alias.asname or alias.name, alias.name) for alias in statement.names)
    elif isinstance(statement, ast.With) and _is_call(statement.items[0].context_expr, "read_base"):
        for inner in statement.body:
            if isinstance(inner, ast.ImportFrom) and folder is not None:
                module = (inner.module or "").replace(".", "/") + ".py"
                base = _base("../" * (inner.level - 1) + module if inner.level else "::" + module, where, folder, reading)
                wanted = {alias.asname or alias.name: alias.name for alias in inner.names}
                names.update(base if "*" in wanted else {name: base[given] for name, given in wanted.items() if given in base})
    elif isinstance(statement, (ast.Import, ast.FunctionDef, ast.ClassDef)):
        _spoil([statement], names, where)
        for node in statement.names if isinstance(statement, ast.Import) else [statement]:  # type: ignore[list-item]
            changed = (getattr(node, "asname", None) or node.name).split(".")[0]  # type: ignore[attr-defined]
            names[changed] = _code(statement, where, "code that changes %s" % changed)
    elif isinstance(statement, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
        _assigned(statement, names, where)
    elif not _updated(statement, names, where) and not _is_idle(statement):
        raise Unsupported("%s, line %d: code (%s) that is not run could change what is read; write the values themselves there"
                          % (where, statement.lineno, type(getattr(statement, "value", statement)).__name__))


def _assigned(statement: Any, names: Dict[str, Any], where: str) -> None:
    """Carry out an assignment."""
    _spoil([statement], names, where)
    if isinstance(statement, ast.Assign):
        for target in statement.targets:
            if getattr(target, "id", "") != "_base_":
                _assign(target, _value(statement.value, names, where), names, where)
    elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
        _assign(statement.target, _value(statement.value, names, where), names, where)
    elif isinstance(statement, ast.AugAssign):
        value = _computed(statement.op, _value(statement.target, names, where), _value(statement.value, names, where))
        if value is None:
            value = _code(statement, where, "an assignment to %s" % _root(statement.target))
        _assign(statement.target, value, names, where)


def _spoil(given: Sequence[ast.AST], names: Dict[str, Any], where: str) -> None:
    """Dicts and lists that are handed to code are not known any more."""
    for call in (node for part in given for node in ast.walk(part)):
        if isinstance(call, ast.Call) and not _is_call(call, "dict"):
            for node in ast.walk(call):
                if isinstance(node, ast.Name) and isinstance(names.get(node.id), (dict, list)):
                    names[node.id] = _code(call, where, "code that may change %s" % node.id)


def _updated(statement: ast.stmt, names: Dict[str, Any], where: str) -> bool:
    """Carry out name.update(…) with a dict or keywords; whether the statement is one."""
    call = getattr(statement, "value", None)
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute) or call.func.attr != "update":
        return False
    given = _arguments(call)
    _spoil([value for _, value in given], names, where)
    container, items = _value(call.func.value, names, where), _dict(given, call, names, where)
    if not isinstance(container, dict) or not isinstance(items, dict):
        return False
    container.update(items)
    return True


def _is_idle(statement: ast.stmt) -> bool:
    """Is the statement `pass` or a docstring?"""
    return isinstance(statement, ast.Pass) or isinstance(statement, ast.Expr) and type(statement.value).__name__ in ("Constant", "Str")


def _assign(target: ast.AST, value: Any, names: Dict[str, Any], where: str) -> None:
    if isinstance(target, ast.Name):
        names[target.id] = value
    elif isinstance(target, (ast.Tuple, ast.List)):
        parts = list(_sequence(value))
        fits = len(parts) == len(target.elts)
        for number, part in enumerate(target.elts):
            _assign(part, parts[number] if fits else _code(target, where, "an assignment to several names"), names, where)
    elif isinstance(target, (ast.Attribute, ast.Subscript)):
        container, key = _value(target.value, names, where), _key(target, names, where)
        if isinstance(container, dict) and isinstance(key, (str, int)):
            container[key] = value
        elif _root(target):
            names[_root(target)] = _code(target, where, "code that changes %s" % _root(target))


def _value(node: ast.AST, names: Dict[str, Any], where: str) -> Any:
    """The value of an expression; Code where only running it would give one."""
    value: Any = None
    if isinstance(node, ast.Name):
        return names.get(node.id, _code(node, where, "the name %s" % node.id))
    if isinstance(node, ast.Dict):
        return _dict(list(zip(node.keys, node.values)), node, names, where)
    if _is_call(node, "dict"):
        return _dict(_arguments(node), node, names, where)
    if isinstance(node, (ast.List, ast.Tuple)):
        items = [_value(item, names, where) for item in node.elts]
        return items if isinstance(node, ast.List) else tuple(items)
    if isinstance(node, ast.Set) and isinstance(node.elts[0], ast.Set):  # mmcv's {{_base_.name}}
        return _value(node.elts[0].elts[0], names, where)
    if isinstance(node, (ast.Attribute, ast.Subscript)):
        container, key = _value(node.value, names, where), _key(node, names, where)
        if isinstance(container, Code):
            return container
        if isinstance(container, dict) and isinstance(key, (str, int)):
            value = container.get(key)
        elif _sequence(container) and type(key) is int and -len(container) <= key < len(container):
            value = container[key]
    elif isinstance(node, ast.BinOp):
        value = _computed(node.op, _value(node.left, names, where), _value(node.right, names, where))
    else:
        try:
            return ast.literal_eval(node)  # type: ignore[arg-type]
        except (ValueError, TypeError):
            pass
    return value if value is not None else _code(node, where, _described(node))


def _arguments(call: Any) -> List[Tuple[Any, ast.AST]]:
    """The arguments of dict(…) or update(…) as pairs for _dict()."""
    return [(None, arg) for arg in call.args] + [(word.arg, word.value) for word in call.keywords]


def _dict(given: List[Tuple[Any, ast.AST]], node: ast.AST, names: Dict[str, Any], where: str) -> Any:
    """A dict of (key: an expression or a keyword's name; None for `**`, value) pairs."""
    made: Dict[Any, Any] = {}
    for key, item in given:
        key = _value(key, names, where) if isinstance(key, ast.AST) else key
        value = _value(item, names, where)
        if isinstance(key, (str, int)):
            made[key] = value
        elif key is None and isinstance(value, dict):
            made.update(value)
        else:
            return value if isinstance(value, Code) else _code(node, where, "a dict of such keys")
    return made


def _computed(operator: ast.operator, left: Any, right: Any) -> Any:
    """A sum of two plain values of a kind, or arithmetic on numbers; None for all else."""
    numbers = type(left) in (int, float) and type(right) in (int, float)
    try:
        if isinstance(operator, ast.Add) and (numbers or type(left) is type(right) and type(left) in (str, list, tuple)):
            value = left + right
        elif numbers and isinstance(operator, ast.Sub):
            value = left - right
        elif numbers and isinstance(operator, ast.Mult):
            value = left * right
        elif numbers and isinstance(operator, ast.Div):
            value = left / right
        elif numbers and isinstance(operator, ast.FloorDiv):
            value = left // right
        else:
            return None
    except ArithmeticError:
        return None
    small = abs(value) < 1 << 62 if numbers else len(value) <= _LIMIT
    return value if small else None


def _key(node: ast.AST, names: Dict[str, Any], where: str) -> Any:
    """The key of an attribute or a subscript."""
    if isinstance(node, ast.Attribute):
        return node.attr
    inner: Any = node.slice  # type: ignore[attr-defined]
    return _value(getattr(inner, "value", inner) if type(inner).__name__ == "Index" else inner, names, where)  # Python 3.8


def _root(node: ast.AST) -> str:
    """The name that model.backbone['depth'] begins with; empty where there is none."""
    while isinstance(node, (ast.Attribute, ast.Subscript)):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def _is_call(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name


def _code(node: ast.AST, where: str, what: str) -> Code:
    return Code("%s, line %d" % (where, getattr(node, "lineno", 0)), what)


def _described(node: ast.AST) -> str:
    if isinstance(node, ast.Call):
        return "a call of %s" % (_root(node.func) or "code")
    return "code (%s)" % type(node).__name__
