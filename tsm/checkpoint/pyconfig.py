"""The names that an mmaction2 config assigns, a Python file or the text of one kept in a checkpoint. Nothing in it is executed.

The text is parsed (ast) and only its values are worked out: literals, dict(...), names assigned before, `*name`, `**name`,
arithmetic and sums of plain values, `name[key] = …`, methods of dicts and lists (_METHODS), `_base_` files, `_delete_` and
read_base(), as mmcv's and mmengine's Config take them. Any other value becomes a Code, and only one in a place that is asked for
is an error; so is a statement that could change what was read.
"""

import ast
import operator
import os
import re
import warnings
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

from tsm.cli import UserError

_ROOM = 1 << 18  # what a config may take: its characters and its bases', and items and characters of values made of others
_FILE = _ROOM // 100  # what it, and a base each time that it is included, takes beside its characters
_ARITHMETIC: Dict[Any, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv, ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod, ast.Pow: operator.pow,
}
_NAMES = re.compile(r"(?m)^(?:(?:/|[A-Za-z]:[\\/]|\\\\).*|[\w.~-]*/[\w.~/-]+)\.py\r?$")  # lines that name a file; mmcv's are absolute
_UNKNOWN = object()  # what a call gives that is not carried out


class Unsupported(UserError):
    """A config that asks for what this suite does not do, or that only running it would tell."""


class Code(NamedTuple):
    """A value that only running the config would give."""

    place: str  # file and line
    what: str


class Based(dict):
    """A dict that came from a base, mmengine's ConfigDict: update() merges into it at every depth, and what is put into it is copied."""


_METHODS: Dict[str, Any] = {  # that are carried out, and whose they are
    "update": dict, "merge": Based, "get": dict, "pop": (dict, list), "copy": (dict, list), "append": list, "extend": list, "insert": list,
}


class _Scope(NamedTuple):
    """A text that is being read."""

    names: Dict[str, Any]
    where: str  # it is, in words
    folder: Optional[str]  # what its bases are relative to, if known
    chain: Tuple[str, ...]  # the files that it is a base of, each the base of the one before, and its own
    room: List[int]  # what is left of _ROOM, for all of them

    def pay(self, size: int) -> None:
        self.room[0] -= size
        if self.room[0] < 0:
            raise MemoryError


def read(path: str) -> Dict[str, Any]:
    """The names that a config file assigns, its `_base_` files merged in.

    Raises: UserError, naming the file, where it or a base of it is missing, is not Python, or includes itself.
    """
    return _read(path, (), [_ROOM])


def parse(text: str, where: str) -> Dict[str, Any]:
    """The same of a config's text as mmaction2 keeps it in a checkpoint; `where` names it in errors.

    Older versions kept the texts of the bases and of the config one after the other, each under its file's name.
    """
    config: Dict[str, Any] = {}
    room = [_ROOM]
    for part in _NAMES.split(text) if len(text) <= _ROOM else [text]:  # which is refused
        config = _names(part.encode("utf-8", "replace"), _Scope({}, where, None, (), room), config)
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


def _read(path: str, chain: Tuple[str, ...], room: List[int]) -> Dict[str, Any]:
    place = os.path.realpath(path)
    if place in chain:
        raise UserError("%s: includes itself through _base_; mend the config" % path)
    if not os.path.isfile(path):
        based = ", which %s is based on" % chain[-1] if chain else ""
        raise UserError("%s: no such config%s; check the path" % (path, based))
    if path.lower().endswith((".json", ".yml", ".yaml")):
        raise UserError("%s: is a config in JSON or YAML, which this suite does not read; pass it in Python (.py), as mmengine's "
                        "Config.fromfile(…).dump('x.py') writes it" % path)
    with open(path, "rb") as file:
        raw = file.read(_ROOM)
    return _names(raw, _Scope({}, path, os.path.dirname(path), chain + (place,), room), {})


def _base(name: Any, scope: _Scope) -> Dict[str, Any]:
    """The names of the base that a config calls `name`."""
    if "::" in str(name):
        raise UserError("%s: is based on %s, of an installed package, where this suite does not look; copy that file and name the "
                        "copy's path there" % (scope.where, str(name)[:200]))
    return _read(os.path.join(str(scope.folder), str(name)), scope.chain, scope.room)


def _names(raw: bytes, scope: _Scope, base: Dict[str, Any]) -> Dict[str, Any]:
    """The values of the names that a config's text assigns, over those of `base`."""
    try:
        scope.pay(len(raw) + _FILE)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in its strings
            tree = ast.parse(raw)
        for statement in tree.body:
            if isinstance(statement, ast.Assign) and [getattr(target, "id", "") for target in statement.targets] == ["_base_"]:
                given = _value(statement.value, scope)
                refuse_code(given)
                for name in [given] if isinstance(given, str) else sequence(given):
                    if scope.folder is not None:
                        base = _merged(_base(name, scope), base, scope)
        scope.names["_base_"] = base = _based(base, scope, True)
        for statement in sorted(tree.body, key=lambda one: not isinstance(one, ast.With)):  # mmengine reads bases first
            _carry_out(statement, scope)
        refuse_code(scope.names.pop("_base_"))
        return _merged(scope.names, base, scope)
    except SyntaxError as error:
        raise UserError("%s: not a config in Python (line %s: %s)" % (scope.where, error.lineno, error.msg))
    except (ValueError, RecursionError, MemoryError):
        raise UserError("%s: not a config in Python, or too long or too deep, or it has too many bases or values" % scope.where)


def _based(value: Any, scope: _Scope, afresh: bool = False) -> Any:
    """A value as mmengine puts it into a dict that came from a base: lists copied, and dicts, but for those that did; with `afresh`
    those too, as it hands a base on."""
    scope.pay(1)
    if type(value) is dict or afresh and type(value) is Based:
        return Based((key, _based(item, scope, afresh)) for key, item in value.items())
    return type(value)(_based(item, scope, afresh) for item in value) if type(value) in (list, tuple) else value


def _merged(child: Dict[str, Any], base: Any, scope: _Scope) -> Dict[str, Any]:
    """A config over its base, as mmcv's Config merges them: dicts key by key, unless the child's has `_delete_`."""
    scope.pay(len(child))
    merged = dict(base) if isinstance(base, dict) and not child.get("_delete_") else {}
    for key, value in child.items():
        if key != "_delete_":
            merged[key] = _merged(value, merged.get(key), scope) if isinstance(value, dict) else value
    return merged


def _carry_out(statement: Any, scope: _Scope) -> None:
    """Take in one statement: an assignment, a method of a dict or a list, an import of bases, a definition.

    Raises: Unsupported where it is another, which could change what is read.
    """
    names, value = scope.names, getattr(statement, "value", None)
    _spoil(statement, scope)
    if isinstance(statement, ast.ImportFrom):  # a class is known by its name
        names.update((alias.asname or alias.name, alias.name) for alias in statement.names)
    elif isinstance(statement, ast.With) and _is_call(statement.items[0].context_expr, "read_base"):
        known: Dict[str, Any] = {}
        for inner in statement.body if scope.folder is not None else ():
            _import_base(inner, scope, known)
    elif isinstance(statement, (ast.Import, ast.FunctionDef, ast.ClassDef)):
        for node in statement.names if isinstance(statement, ast.Import) else [statement]:
            changed = (getattr(node, "asname", None) or node.name).split(".")[0]
            names[changed] = _code(statement, scope, "code that changes %s" % changed)
    elif isinstance(statement, (ast.Assign, ast.AnnAssign)):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        for target in targets if value is not None and getattr(targets[0], "id", "") != "_base_" else ():
            _assign(target, _value(value, scope), scope)
    elif isinstance(statement, ast.AugAssign):
        old = _value(statement.target, scope)
        made = _computed(statement.op, old, _value(value, scope), scope)
        if isinstance(old, list) and made is not None:  # it changes where it stands
            old[:], made = made, old
        code = _code(statement, scope, "an assignment to %s" % _root(statement.target))
        _assign(statement.target, code if made is None else made, scope)
    elif isinstance(statement, ast.Pass) or isinstance(statement, ast.Expr) and type(value).__name__ in ("Constant", "Str"):
        pass  # as a docstring
    elif not isinstance(value, ast.Call) or _called(value, scope) is _UNKNOWN:
        raise Unsupported("%s, line %d: code (%s) that is not run could change what is read; write the values themselves there"
                          % (scope.where, statement.lineno, type(value or statement).__name__))


def _import_base(statement: Any, scope: _Scope, known: Dict[str, Any]) -> None:
    """Take in `from .base import *`, or names of it; `known` holds the bases that were read already."""
    if isinstance(statement, ast.ImportFrom):
        module = (statement.module or "").replace(".", "/") + ".py"
        name = "../" * (statement.level - 1) + module if statement.level else "::" + module
        if name not in known:
            known[name] = _based(_base(name, scope), scope, True)
        base = known[name]
        wanted = {alias.asname or alias.name: alias.name for alias in statement.names}
        scope.names.update(base if "*" in wanted else {name: base[given] for name, given in wanted.items() if given in base})


def _spoil(part: ast.AST, scope: _Scope) -> None:
    """Dicts and lists that are handed to code are not known any more."""
    for call in ast.walk(part):
        if isinstance(call, ast.Call) and not _is_call(call, "dict") and not _method(call, scope):
            for node in ast.walk(call):
                if isinstance(node, ast.Name) and isinstance(scope.names.get(node.id), (dict, list)):
                    scope.names[node.id] = _code(call, scope, "code that may change %s" % node.id)


def _method(call: Any, scope: _Scope) -> str:
    """The name of the method of a known dict or list that a call is of; empty for another call."""
    known = isinstance(call.func, ast.Attribute) and isinstance(scope.names.get(_root(call.func.value)), (dict, list))
    return call.func.attr if known and call.func.attr in _METHODS else ""


def _called(call: Any, scope: _Scope) -> Any:
    """What a method of a known dict or list gives, carried out; _UNKNOWN for any other call."""
    name = _method(call, scope)
    if not name:
        return _UNKNOWN
    container, args = _value(call.func.value, scope), [_value(arg, scope) for arg in call.args]
    if not isinstance(container, _METHODS[name]) or any(isinstance(arg, Code) for arg in args):
        return _UNKNOWN
    scope.pay(len(container) + sum(map(len, map(sequence, args))))
    if name in ("update", "merge"):
        given = _dict(call, scope)
        if not isinstance(given, dict):
            return _UNKNOWN
        if name == "merge":
            made = _based(_merged(given, container, scope), scope, True)
            container.clear()
            return container.update(made)
        return _update(container, given, scope)
    if type(container) is Based and name in ("pop", "copy"):
        return Based(container) if name == "copy" else container.pop(*(args + [None])[:2])
    try:
        return getattr(container, name)(*args)
    except (TypeError, ValueError, LookupError):  # not the arguments that it takes
        return _UNKNOWN


def _update(container: Dict[Any, Any], given: Dict[Any, Any], scope: _Scope) -> None:
    """container.update(given), which merges into what came from a base."""
    for key, value in given.items():
        if type(container) is Based and isinstance(container.get(key), dict) and isinstance(value, dict):
            _update(container[key], value, scope)
        else:
            container[key] = _based(value, scope) if type(container) is Based else value


def _assign(target: ast.AST, value: Any, scope: _Scope) -> None:
    if isinstance(target, ast.Name):
        scope.names[target.id] = value
    elif isinstance(target, (ast.Tuple, ast.List)):
        parts = list(sequence(value))
        fits = len(parts) == len(target.elts)
        for number, part in enumerate(target.elts):
            _assign(part, parts[number] if fits else _code(target, scope, "an assignment to several names"), scope)
    elif isinstance(target, (ast.Attribute, ast.Subscript)):
        container, key = _value(target.value, scope), _key(target, scope)
        places = range(-len(container), len(container)) if isinstance(container, list) else ()
        if isinstance(container, dict) and isinstance(key, (str, int)) or type(key) is int and key in places:
            container[key] = _based(value, scope) if type(container) is Based else value
        elif _root(target):
            scope.names[_root(target)] = _code(target, scope, "code that changes %s" % _root(target))


def _value(node: Any, scope: _Scope) -> Any:
    """The value of an expression; Code where only running it would give one."""
    value: Any = None
    if isinstance(node, ast.Name):
        return scope.names.get(node.id, _code(node, scope, "the name %s" % node.id))
    if isinstance(node, ast.Dict) or _is_call(node, "dict"):
        return _dict(node, scope)
    if isinstance(node, ast.Call):
        value = _called(node, scope)
        return _code(node, scope, "a call of %s" % (_root(node.func) or "code")) if value is _UNKNOWN else value
    if isinstance(node, (ast.List, ast.Tuple)):
        return _items(node, scope)
    if isinstance(node, ast.JoinedStr):
        return _joined(node, scope)
    if isinstance(node, ast.Set) and isinstance(node.elts[0], ast.Set):  # mmcv's {{_base_.name}}
        return _value(node.elts[0].elts[0], scope)
    if isinstance(node, (ast.Attribute, ast.Subscript)):
        container, key = _value(node.value, scope), _key(node, scope)
        if isinstance(container, Code):
            return container
        if isinstance(container, dict) and isinstance(key, (str, int)):
            value = container.get(key)
        elif sequence(container) and type(key) is int and -len(container) <= key < len(container):
            value = container[key]
    elif isinstance(node, ast.BinOp):
        value = _computed(node.op, _value(node.left, scope), _value(node.right, scope), scope)
    else:
        try:
            return ast.literal_eval(node)
        except (ValueError, TypeError):
            pass
    return value if value is not None else _code(node, scope, "code (%s)" % type(node).__name__)


def _items(node: Any, scope: _Scope) -> Any:
    """A list or a tuple, `*name` in it unpacked."""
    items: List[Any] = []
    for item in node.elts:
        starred = isinstance(item, ast.Starred)
        value = _value(item.value if starred else item, scope)
        if not starred:
            items.append(value)
        elif isinstance(value, (list, tuple)) and not isinstance(value, Code):
            scope.pay(len(value))
            items.extend(value)
        else:
            return value if isinstance(value, Code) else _code(node, scope, "a list of such items")
    return items if isinstance(node, ast.List) else tuple(items)


def _joined(node: Any, scope: _Scope) -> Any:
    """An f-string of texts and whole numbers that are shown as they are."""
    parts = []
    for part in node.values:
        formatted = isinstance(part, ast.FormattedValue)
        value = _value(part.value if formatted else part, scope)
        if type(value) not in (str, int) or formatted and (part.format_spec or part.conversion != -1):
            return value if isinstance(value, Code) else _code(node, scope, "code (JoinedStr)")
        parts.append(str(value))
        scope.pay(len(parts[-1]))
    return "".join(parts)


def _dict(node: Any, scope: _Scope) -> Any:
    """A dict, of a display or of a call's arguments."""
    pairs = list(zip(node.keys, node.values)) if isinstance(node, ast.Dict) else [
        (None, arg) for arg in node.args] + [(word.arg, word.value) for word in node.keywords]
    made: Dict[Any, Any] = {}
    for key, item in pairs:  # a key is an expression or a keyword's name; None of `**`
        key = _value(key, scope) if isinstance(key, ast.AST) else key
        value = _value(item, scope)
        if isinstance(key, (str, int)):
            made[key] = value
        elif key is None and isinstance(value, dict):
            scope.pay(len(value))
            made.update(value)
        else:
            return value if isinstance(value, Code) else _code(node, scope, "a dict of such keys")
    return made


def _computed(sign: ast.operator, left: Any, right: Any, scope: _Scope) -> Any:
    """A sum of two plain values of a kind, one of them so many times, or arithmetic on numbers; None for all else."""
    if type(left) is int and type(right) in (str, list, tuple) and isinstance(sign, ast.Mult):
        left, right = right, left
    if type(left) in (str, list, tuple):
        if type(right) is int and isinstance(sign, ast.Mult):
            scope.pay(len(left) * max(0, right))
            return left * right
        if type(right) is type(left) and isinstance(sign, ast.Add):
            scope.pay(len(left) + len(right))
            return left + right
        return None
    if type(left) not in (int, float) or type(right) not in (int, float) or type(sign) not in _ARITHMETIC:
        return None
    if isinstance(sign, ast.Pow) and (type(right) is not int or abs(right) > 64 or abs(left) > 1 << 16):
        return None
    try:
        value = _ARITHMETIC[type(sign)](left, right)
    except ArithmeticError:
        return None
    return value if abs(value) < 1 << 62 else None


def _key(node: Any, scope: _Scope) -> Any:
    """The key of an attribute or a subscript."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return _value(node.slice.value if type(node.slice).__name__ == "Index" else node.slice, scope)  # Python 3.8


def _root(node: ast.AST) -> str:
    """The name that model.backbone['depth'] begins with; empty where there is none."""
    while isinstance(node, (ast.Attribute, ast.Subscript)):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def _is_call(node: Any, name: str) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name


def _code(node: ast.AST, scope: _Scope, what: str) -> Code:
    return Code("%s, line %d" % (scope.where, getattr(node, "lineno", 0)), what)
