"""The names that an mmaction2 config assigns, a Python file or the text of one kept in a checkpoint. Nothing in it is executed.

The text is parsed (ast) and only its values are worked out: literals, dict(...), names assigned before, `*name`, `**name`,
arithmetic and sums of plain values, `name[key] = …`, `name.update(…)`, `_base_` files and `_delete_`, as mmcv's and mmengine's
Config take them. Any other value becomes a Code, and only one in a place that is asked for is an error; so is a statement that
could change what was read.
"""

import ast
import operator
import os
import re
import warnings
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

from tsm.cli import UserError

_LIMIT = 1 << 18  # characters of a config and its bases
_MADE = 1 << 8  # items or characters of a value made of others, as a text of _LIMIT may ask for very many
_FILES = 100  # of a config, its bases counted as often as they are included
_DEPTH = 20  # of dicts in dicts
_ARITHMETIC: Dict[Any, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv, ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod, ast.Pow: operator.pow,
}
_NAMES = re.compile(r"(?m)^(?:(?:/|[A-Za-z]:[\\/]|\\\\).*|[\w.~-]*/[\w.~/-]+)\.py\r?$")  # lines that name a file; mmcv's are absolute


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
    parts = _NAMES.split(text) if len(text) <= _LIMIT else []
    if not 1 <= len(parts) <= _FILES:
        raise UserError("%s: too long for a config" % where)
    for part in parts:
        config = _names(part.encode("utf-8", "replace"), where, None, _Reading((), []), config)
    return config


def sequence(value: Any) -> Sequence[Any]:
    """The items of a list or a tuple; none of anything else."""
    return value if isinstance(value, (list, tuple)) and not isinstance(value, Code) else ()


def refuse_code(value: Any) -> None:
    """Raise Unsupported where a value that is needed, or one of its items, is a Code."""
    for item in [value] + list(sequence(value)):
        if isinstance(item, Code):
            raise Unsupported("%s: %s is not run, and a value that is needed depends on it; write the value itself there"
                            % (item.place, item.what))


def get(config: Any, *keys: str) -> Any:
    """The value at model.backbone.depth and the like; None where there is none."""
    for key in keys:
        refuse_code(config)
        config = config.get(key) if isinstance(config, dict) else None
    refuse_code(config)
    return config


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
    kind = {".json": "JSON", ".yml": "YAML", ".yaml": "YAML"}.get(os.path.splitext(path)[1].lower())
    if kind:
        raise UserError("%s: is a config in %s, which this suite does not read; pass it in Python (.py), as mmengine's "
                        "Config.fromfile(…).dump('x.py') writes it" % (path, kind))
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
                refuse_code(given)
                for name in [given] if isinstance(given, str) else sequence(given):
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
        parts = list(sequence(value))
        fits = len(parts) == len(target.elts)
        for number, part in enumerate(target.elts):
            _assign(part, parts[number] if fits else _code(target, where, "an assignment to several names"), names, where)
    elif isinstance(target, (ast.Attribute, ast.Subscript)):
        container, key = _value(target.value, names, where), _key(target, names, where)
        places = range(-len(container), len(container)) if isinstance(container, list) else ()
        if isinstance(container, dict) and isinstance(key, (str, int)) or type(key) is int and key in places:
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
        return _items(node, names, where)
    if isinstance(node, ast.JoinedStr):
        return _joined(node, names, where)
    if isinstance(node, ast.Set) and isinstance(node.elts[0], ast.Set):  # mmcv's {{_base_.name}}
        return _value(node.elts[0].elts[0], names, where)
    if isinstance(node, (ast.Attribute, ast.Subscript)):
        container, key = _value(node.value, names, where), _key(node, names, where)
        if isinstance(container, Code):
            return container
        if isinstance(container, dict) and isinstance(key, (str, int)):
            value = container.get(key)
        elif sequence(container) and type(key) is int and -len(container) <= key < len(container):
            value = container[key]
    elif isinstance(node, ast.BinOp):
        value = _computed(node.op, _value(node.left, names, where), _value(node.right, names, where))
    else:
        try:
            return ast.literal_eval(node)  # type: ignore[arg-type]
        except (ValueError, TypeError):
            pass
    return value if value is not None else _code(node, where, _described(node))


def _items(node: Any, names: Dict[str, Any], where: str) -> Any:
    """A list or a tuple, `*name` in it unpacked."""
    items: List[Any] = []
    for item in node.elts:
        value = _value(getattr(item, "value", item) if isinstance(item, ast.Starred) else item, names, where)
        if not isinstance(item, ast.Starred):
            items.append(value)
        elif isinstance(value, (list, tuple)) and not isinstance(value, Code) and len(value) <= _MADE:
            items.extend(value)
        else:
            return value if isinstance(value, Code) else _code(node, where, "a list of such items")
    return items if isinstance(node, ast.List) else tuple(items)


def _joined(node: ast.JoinedStr, names: Dict[str, Any], where: str) -> Any:
    """An f-string of texts and whole numbers that are shown as they are."""
    parts = []
    for part in node.values:
        shape = isinstance(part, ast.FormattedValue) and (part.format_spec or part.conversion != -1)
        value = _value(getattr(part, "value", part) if isinstance(part, ast.FormattedValue) else part, names, where)
        if shape or type(value) not in (str, int) or len(str(value)) > _MADE and isinstance(part, ast.FormattedValue):
            return value if isinstance(value, Code) else _code(node, where, _described(node))
        parts.append(str(value))
    return "".join(parts)


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
        elif key is None and isinstance(value, dict) and len(value) <= _MADE:
            made.update(value)
        else:
            return value if isinstance(value, Code) else _code(node, where, "a dict of such keys")
    return made


def _computed(sign: ast.operator, left: Any, right: Any) -> Any:
    """A sum of two plain values of a kind, one of them so many times, or arithmetic on numbers; None for all else."""
    if type(left) in (str, list, tuple) and type(right) in (str, list, tuple, int):
        whole = len(left) * max(0, right) if type(right) is int else len(left) + len(right)
        kinds = int if isinstance(sign, ast.Mult) else type(left) if isinstance(sign, ast.Add) else None
        fits = whole <= _MADE and type(right) is kinds
        return (left * right if kinds is int else left + right) if fits else None
    if type(left) is int and type(right) in (str, list, tuple):
        return _computed(sign, right, left) if isinstance(sign, ast.Mult) else None
    if type(left) not in (int, float) or type(right) not in (int, float) or type(sign) not in _ARITHMETIC:
        return None
    if isinstance(sign, ast.Pow) and (type(right) is not int or abs(right) > 64 or abs(left) > 1 << 16):
        return None
    try:
        value = _ARITHMETIC[type(sign)](left, right)
    except ArithmeticError:
        return None
    return value if abs(value) < 1 << 62 else None


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
