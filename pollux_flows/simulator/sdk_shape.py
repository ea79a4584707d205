"""Checks of JSON documents made from the types of a provider's SDK.

An SDK declares the requests of its provider as dictionaries with typed fields. Limits of numbers and texts are not part
of these types, and are added by name.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Required, Union, get_args, get_origin

from typing_extensions import get_type_hints, is_typeddict

from pollux_flows.simulator.shape import (
    Check,
    Path,
    anything,
    boolean,
    integer,
    items,
    nullable,
    number,
    one_of,
    record,
    string_or,
    tagged,
    text,
    values,
)

_SIMPLE: Mapping[Any, Check] = {str: text, bool: boolean, int: integer(), float: number(), object: anything}
_LISTS = (list, Iterable, Sequence)
#: The fields that tell the members of a union apart.
_TAGS = ("type", "role")


class SdkShapes:
    """The checks for the types of one SDK.

    `limits` are checks of single fields, by `Type.field`; the API itself does not require the `optional` ones.
    """

    def __init__(self, limits: Mapping[str, Check], optional: Collection[str] = ()) -> None:
        self._limits, self._optional = limits, optional
        self._records: dict[Any, Check] = {}

    def fields(self, declared: Any) -> tuple[dict[str, Check], dict[str, Check]]:
        """Return the checks of the required and of the optional fields of a dictionary type."""
        hints = get_type_hints(declared, include_extras=True)
        required: dict[str, Check] = {}
        optional: dict[str, Check] = {}
        for name, hint in hints.items():
            full_name = f"{declared.__name__}.{name}"
            is_required = _origin(hint) is Required and full_name not in self._optional
            (required if is_required else optional)[name] = self._limits.get(full_name) or self.check(hint)
        return required, optional

    def check(self, hint: Any) -> Check:
        """Return the check for a type; a type without JSON values accepts anything."""
        origin, args = _origin(hint), get_args(hint)
        if origin in (Required, Annotated):
            return self.check(args[0])
        if is_typeddict(hint):
            return self._record(hint)
        if origin is Literal:
            return one_of(*args) if all(isinstance(value, str) for value in args) else boolean
        if origin in (Union, UnionType):
            return self._union(args)
        if origin in _LISTS:
            return items(self.check(args[0]))
        if origin is dict:
            return values(self.check(args[1]))
        return _SIMPLE.get(hint, anything)

    def _record(self, declared: Any) -> Check:
        """Return the check for a dictionary type, made at its first use: types refer to each other."""

        def check(value: Any, path: Path) -> None:
            if declared not in self._records:
                self._records[declared] = record(*self.fields(declared))
            self._records[declared](value, path)

        return check

    def _union(self, members: Sequence[Any]) -> Check:
        if NoneType in members:
            return nullable(self._union([member for member in members if member is not NoneType]))
        texts = [member for member in members if member is str or _origin(member) is Literal]
        known = [member for member in members if is_typeddict(member) or _origin(member) in (*_LISTS, dict)]
        if texts:
            return string_or(self._union(known)) if known else self.check(str if str in texts else texts[0])
        if len(known) == 1:
            return self.check(known[0])
        for tag in _TAGS:
            variants = {name: self.check(member) for member in known for name in _names(member, tag)}
            if variants:
                default = next((name for member in known for name in _names(member, tag, optional=True)), None)
                return tagged(tag, variants, default)
        return self.check(members[0])


def _names(member: Any, tag: str, *, optional: bool = False) -> Iterator[str]:
    """Iterate over the values of a tag in a dictionary type."""
    hint = get_type_hints(member, include_extras=True).get(tag)
    if optional and _origin(hint) is Required:
        return
    while hint is not None and _origin(hint) is not Literal:
        hint = next(iter(get_args(hint)), None)
    yield from get_args(hint)


def _origin(hint: Any) -> Any:
    """Return the unsubscripted form of a type, which the type checker takes for a more special one."""
    return get_origin(hint)
