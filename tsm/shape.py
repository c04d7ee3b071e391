"""What a JSON value is made of, told by small checks that are put together: `parts({"videos": COUNT, "names": each(TEXT)})`.

A check is given a value and answers None where it fits, else the place in it that does not, as in `.names[3]`; that is empty
where it is the value itself.
"""

import os
import re
from typing import Any, Callable, Mapping, Optional

MOST = 1e39  # of a figure: beyond all of float32
Check = Callable[[Any], Optional[str]]


def _one(fits: Callable[[Any], bool]) -> Check:
    return lambda value: None if fits(value) else ""


def finite(low: float = 0, high: float = MOST) -> Check:
    """A number low..high, which is finite."""
    return _one(lambda value: isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high)


def whole(low: int = 0, high: int = 10 ** 12) -> Check:
    """A whole number low..high."""
    return _one(lambda value: isinstance(value, int) and not isinstance(value, bool) and low <= value <= high)


def among(*known: str) -> Check:
    """One of these words."""
    return _one(lambda value: isinstance(value, str) and value in known)


def _is_path(value: Any) -> bool:
    try:
        return isinstance(value, str) and b"\0" not in os.fsencode(value)
    except UnicodeEncodeError:
        return False


def is_index(text: str) -> bool:
    """Is it a whole number of at most nine ASCII digits?"""
    return bool(re.match(r"[0-9]{1,9}\Z", text))


ANY: Check = _one(lambda value: True)
FLAG = _one(lambda value: isinstance(value, bool))
TEXT = _one(lambda value: isinstance(value, str))
PATH = _one(_is_path)  # a name that a file can have
COUNT, SHARE = whole(), finite(0, 1)


def maybe(check: Check) -> Check:
    """What `check` takes, or None."""
    return lambda value: None if value is None else check(value)


def each(check: Check, least: int = 0, most: float = float("inf")) -> Check:
    """A list of least..most values that `check` takes."""
    def of_list(value: Any) -> Optional[str]:
        if not isinstance(value, (list, tuple)) or not least <= len(value) <= most:
            return ""
        for place, item in enumerate(value):
            wrong = check(item)
            if wrong is not None:
                return "[%d]%s" % (place, wrong)
        return None

    return of_list


INTERVAL = each(SHARE, 2, 2)  # its two ends


def named(check: Check, key: Callable[[str], bool] = lambda name: True) -> Check:
    """An object of any names that `key` takes, whose values `check` takes."""
    def of_object(value: Any) -> Optional[str]:
        if not isinstance(value, dict):
            return ""
        for name, item in value.items():
            wrong = check(item) if key(name) else ""
            if wrong is not None:
                return ".%s%s" % (name, wrong)
        return None

    return of_object


def parts(needed: Mapping[str, Check], optional: Optional[Mapping[str, Check]] = None) -> Check:
    """An object with these parts, the optional ones only if they are there; other parts are left alone."""
    def of_object(value: Any) -> Optional[str]:
        if not isinstance(value, dict):
            return ""
        for name, check in dict(needed, **(optional or {})).items():
            if name not in value and name not in needed:
                continue
            wrong = check(value[name]) if name in value else ""
            if wrong is not None:
                return ".%s%s" % (name, wrong)
        return None

    return of_object
