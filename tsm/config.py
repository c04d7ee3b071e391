"""Facts from an mmaction2 config, a Python file or the text of one kept in a checkpoint. Nothing in it is executed.

The text is parsed (ast) and only its values are worked out: literals, dict(...), names assigned before, `**name`, sums of
plain values, `_base_` files and `_delete_`, as mmcv's and mmengine's Config take them. All else becomes a Code, and only
one in a place that is asked for is an error. Sources: mmaction2 0.24.1 and 1.2.0, configs/recognition/tsm.
"""

import ast
import os
import re
import reprlib
import warnings
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

from tsm.cli import UserError

_LIMIT = 1 << 20  # characters of a config, items or characters of a value made of others
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


class Code(NamedTuple):
    """A value that only running the config would give."""

    place: str  # file and line
    what: str


def read(path: str) -> Dict[str, Any]:
    """The names that a config file assigns, its `_base_` files merged in.

    Raises: UserError, naming the file, where it or a base of it is missing, is not Python, or includes itself.
    """
    return _read(path, ())


def parse(text: str, where: str) -> Dict[str, Any]:
    """The same of a config's text as mmaction2 keeps it in a checkpoint; `where` names it in errors.

    Older versions kept the texts of the bases and of the config one after the other, each under its file's name.
    """
    config: Dict[str, Any] = {}
    for part in re.split(r"(?m)^[\w.~/-]*/[\w.~/-]+\.py$", text):
        config = _merged(_names(part.encode("utf-8", "replace"), where, None, ()), config)
    return config


def facts(config: Dict[str, Any], where: str) -> Dict[str, Any]:
    """What a config says of a network and its test; facts that it is silent about are left out.

    Returns: network (in words, as tsm.facts names it), classes, segments, head_segments (those that the head averages),
        shift_div, average_clips; of the test: sampling, sampled (frames of a sample), crops, short_side, size, mean, std,
        filename_tmpl, start_index.
    Raises: UserError that names `where` and what is not understood: code in place of a value, an unknown step.
    """
    found: Dict[str, Any] = {"network": _network(config, where)}
    found["classes"] = _number(config, where, "model", "cls_head", "num_classes")
    is_tsm = str(found["network"]).startswith("TSM")
    silent = _SILENT if is_tsm else None
    found["head_segments"] = _number(config, where, "model", "cls_head", "num_segments")
    found["segments"] = _number(config, where, "model", "backbone", "num_segments") or found["head_segments"] or silent
    found["shift_div"] = _number(config, where, "model", "backbone", "shift_div") or silent
    found["average_clips"] = _first(config, where, ("model", "cls_head", "average_clips"), ("model", "test_cfg", "average_clips"),
                                    ("test_cfg", "average_clips"))
    if found["average_clips"] not in (None, "prob", "score"):
        raise UserError("%s: average_clips = %s; prob and score are known" % (where, _short(found["average_clips"])))
    for name in ("filename_tmpl", "start_index"):
        found[name] = _first(config, where, ("data", "test", name), ("test_dataloader", "dataset", name))
        wanted = int if name == "start_index" else str
        if found[name] is not None and (type(found[name]) is not wanted or wanted is int and found[name] < 0):
            raise UserError("%s: %s = %s; %s is needed" % (
                where, name, _short(found[name]), "a whole number" if wanted is int else "the name of a frame's file"))
    if is_tsm:
        found.update(_test_pipeline(config, where))
    return {name: value for name, value in found.items() if value is not None}


def _network(config: Dict[str, Any], where: str) -> Optional[str]:
    """The network in words."""
    kind = _get(config, where, "model", "backbone", "type")
    if kind is None:
        return None
    known = {"MobileNetV2TSM": "TSM MobileNetV2", "MobileOneTSM": "TSM MobileOne", "ResNet3dSlowFast": "SlowFast"}
    if kind not in ("ResNetTSM", "ResNet"):
        return known.get(_short(kind), "%s of mmaction2" % _short(kind))
    depth = _number(config, where, "model", "backbone", "depth")
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
    for step in steps or ():
        found.update(_step(step, found, where))
    for place in (("model", "data_preprocessor"), ("module_hooks",)):
        given = _get(config, where, *place)
        for item in given if isinstance(given, list) else [given]:
            if isinstance(item, dict) and "mean" in item and "std" in item:
                found.setdefault("mean", _triple(item["mean"], where, "mean"))
                found.setdefault("std", _triple(item["std"], where, "std"))
    return found


def _step(step: Any, before: Dict[str, Any], where: str) -> Dict[str, Any]:
    """What one step of a test pipeline decides."""
    _refuse_code(step, where)
    kind = step.get("type") if isinstance(step, dict) else step
    if kind in _PASSED_OVER:
        return {}
    if not isinstance(kind, str) or kind not in _STEPS:
        raise UserError("%s: its test pipeline has the step %s, which this suite does not know" % (where, _short(kind)))
    for name, value in step.items():
        _refuse_code(value, where)
        known = _STEPS[kind].get(name)
        if name != "type" and known is not _ANY and (name not in _STEPS[kind] or value != known):
            raise UserError("%s: the step %s of its test pipeline has %s = %s, which this suite does not know"
                            % (where, kind, name, _short(value)))
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
        whole = name in ("sampled", "short_side", "size")
        if name in before or whole and (type(value) is not int or value < 1):
            raise UserError("%s: the step %s of its test pipeline (%s) is not understood" % (where, kind, _words(step)))
    return decides


def _words(step: Dict[str, Any]) -> str:
    return ", ".join("%s=%s" % (name, _short(value)) for name, value in step.items() if name != "type")[:200]


def _short(value: Any) -> str:
    return value[:60] if isinstance(value, str) else reprlib.repr(value)


def _sequence(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) else ()


def _triple(value: Any, where: str, name: str) -> Tuple[float, ...]:
    _refuse_code(value, where)
    if len(_sequence(value)) != 3 or any(type(number) not in (int, float) for number in value):
        raise UserError("%s: %s = %s; three numbers are needed, one a colour" % (where, name, _short(value)))
    return tuple(map(float, value))


def _refuse_code(value: Any, where: str) -> None:
    for item in [value] + list(_sequence(value)):
        if isinstance(item, Code):
            raise UserError("%s: %s is not run, and a value that is needed depends on it; write the value itself there"
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


def _number(config: Any, where: str, *keys: str) -> Optional[int]:
    value = _get(config, where, *keys)
    if value is not None and (type(value) is not int or value < 1):
        raise UserError("%s: %s = %s; a whole number above 0 is needed" % (where, ".".join(keys), _short(value)))
    return value


# From a text to the values of its names.


def _read(path: str, outer: Tuple[str, ...]) -> Dict[str, Any]:
    place = os.path.realpath(path)
    if place in outer:
        raise UserError("%s: includes itself through _base_; mend the config" % path)
    if not os.path.isfile(path):
        raise UserError("%s: no such config%s; check the path" % (path, ", which %s is based on" % outer[-1] if outer else ""))
    with open(path, "rb") as file:
        return _names(file.read(_LIMIT + 1), path, os.path.dirname(path), outer + (place,))


def _names(raw: bytes, where: str, folder: Optional[str], outer: Tuple[str, ...]) -> Dict[str, Any]:
    """The values of the names that a config's text assigns; `folder` is what its `_base_` files are relative to, if known."""
    try:
        if len(raw) > _LIMIT:
            raise ValueError("too long")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in its strings
            tree = ast.parse(raw)
        base: Dict[str, Any] = {}
        for statement in tree.body:
            if isinstance(statement, ast.Assign) and [getattr(target, "id", "") for target in statement.targets] == ["_base_"]:
                given = _value(statement.value, {}, where)
                for name in [given] if isinstance(given, str) else _sequence(given):
                    if folder is not None:
                        base = _merged(_read(os.path.join(folder, str(name)), outer), base)
        names: Dict[str, Any] = {"_base_": base}
        for statement in tree.body:
            _carry_out(statement, names, where, folder, outer)
        del names["_base_"]
        return _merged(names, base)
    except SyntaxError as error:
        raise UserError("%s: not a config in Python (line %s: %s)" % (where, error.lineno, error.msg))
    except (ValueError, RecursionError, MemoryError):
        raise UserError("%s: not a config in Python" % where)


def _merged(child: Dict[str, Any], base: Dict[str, Any], depth: int = 0) -> Dict[str, Any]:
    """A config over its base, as mmcv's Config merges them: dicts key by key, unless the child's has `_delete_`."""
    if depth > _DEPTH:
        raise ValueError("too deep")
    merged = dict(base)
    for key, value in child.items():
        if isinstance(value, dict):
            below = base.get(key) if not value.get("_delete_") else None
            value = {name: item for name, item in value.items() if name != "_delete_"}
            value = _merged(value, below, depth + 1) if isinstance(below, dict) else value
        merged[key] = value
    return merged


def _carry_out(statement: ast.stmt, names: Dict[str, Any], where: str, folder: Optional[str], outer: Tuple[str, ...]) -> None:
    """Take in one statement: an assignment, an import of bases; what else it could change becomes Code."""
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
    elif isinstance(statement, ast.ImportFrom):  # a class is known by its name
        names.update((alias.asname or alias.name, alias.name) for alias in statement.names)
    elif isinstance(statement, ast.With) and _is_call(statement.items[0].context_expr, "read_base"):
        for inner in statement.body:
            if isinstance(inner, ast.ImportFrom) and folder is not None:
                parts = [".."] * (inner.level - 1) + (inner.module or "").split(".")
                base = _read(os.path.join(folder, *parts) + ".py", outer)
                wanted = {alias.asname or alias.name: alias.name for alias in inner.names}
                names.update(base if "*" in wanted else {name: base[given] for name, given in wanted.items() if given in base})
    else:
        for node in ast.walk(statement):
            changed = getattr(node, "name", None) if isinstance(node, (ast.FunctionDef, ast.ClassDef)) else None
            if isinstance(node, ast.alias):
                changed = (node.asname or node.name).split(".")[0]
            elif isinstance(node, (ast.Name, ast.Attribute, ast.Subscript)) and not isinstance(node.ctx, ast.Load):
                changed = _root(node)
            elif isinstance(node, ast.Call):
                changed = _root(node.func)
            if changed and changed != "_base_":
                names[changed] = _code(node if hasattr(node, "lineno") else statement, where, "code that changes %s" % changed)


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
        given = [(None, arg) for arg in node.args]  # type: ignore[attr-defined]
        given += [(word.arg, word.value) for word in node.keywords]  # type: ignore[attr-defined]
        return _dict(given, node, names, where)
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
