"""Conformance: checks answers against their schemas, in time linear in the answer's length.

An answer is written by a model, which the author of a source may have manipulated. A naive check tries every
combination of the branches of a recursive union (ten levels of three took a minute), and a pattern may backtrack
endlessly. Here each value is checked against each `$ref` once, and patterns run under a deadline.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

from pollux_flows.schemas.validation import (
    References,
    Schema,
    describe,
    dialect,
    make_validator,
    offline,
    select_keywords,
)

if TYPE_CHECKING:
    from jsonschema.exceptions import ValidationError

Keyword: TypeAlias = "Callable[[Any, Any, Any, Any], Iterator[ValidationError]]"

# Formats that are cheap to check and that all validators agree on. `date-time` is not among them: RFC 3339 requires an
# offset, Pydantic does not, and a paid answer is not discarded because of that.
_CHECKED_FORMATS: Final = ("date", "email", "ipv4", "ipv6", "uuid")
_REFERENCES: Final = ("$ref", "$dynamicRef", "$recursiveRef")
_UNIONS: Final = ("anyOf", "oneOf")
_LONGEST_QUOTE: Final = 300
# More faults do not help a reader, and an answer may have a million.
_MOST_FAULTS: Final = 20


class Conformance:
    """Validates answers against one schema. Not thread-safe, as it caches its findings about the current answer."""

    def __init__(self, schema: Schema, *, limit_s: float = 30.0) -> None:
        self._schema = schema
        self._limit_s = limit_s
        self._deadline = 0.0
        self._references = References(schema)
        self._forbidden: dict[tuple[int, str], bool] = {}
        self._fits = _Reading(schema, self._search, formats=_CHECKED_FORMATS)
        self._cleaned: dict[tuple[int, int], tuple[Any, Any]] = {}

    def problems(self, value: Any) -> list[str]:
        """Return the faults of an answer, one line each: `$.items[2].price: 'x' is not of type 'number'`."""
        self._begin()
        if self._fits.is_valid(value, self._schema):
            return []
        return [describe(self._pick(error)) for error in islice(self._fault_finder.iter_errors(value), _MOST_FAULTS)]

    def without_invented_nulls(self, value: Any) -> Any:
        """Return the answer without nulls that only the wire form of the schema allows.

        OpenAI's strict mode has no optional properties, so `for_openai` makes them nullable. A null is removed if its
        property is optional in the schema and may not be null there; every other null stays.
        """
        self._begin()
        return self._clean(value, self._schema)

    def count_steps(self, value: Any) -> int:
        """Count the steps of a validator that tries all branches of each union, as Pydantic does."""
        recursive = self._references.recursive()
        return self._count(value, self._schema, {}) if recursive else 1

    def _begin(self) -> None:
        self._deadline = time.monotonic() + self._limit_s
        self._cleaned.clear()
        for reading in (self._fits, *(self._closed_readings if "_closed_readings" in vars(self) else ())):
            reading.forget()

    def _search(self, pattern: str, text: str) -> bool:
        left = max(self._deadline - time.monotonic(), 0.001)
        try:
            # With `concurrent`, the search releases the GIL.
            return _compile_pattern(pattern).search(text, timeout=left, concurrent=True) is not None
        except TimeoutError:
            problem = f"the pattern {_shorten(pattern)} was not done with {_shorten(repr(text))} in {self._limit_s:g} s"
            raise TimeoutError(problem) from None

    # --- Faults -------------------------------------------------------------------------------------------

    # Building it takes a millisecond, and few answers need it.
    @cached_property
    def _fault_finder(self) -> Any:
        """A validator that descends only into faulty parts, and does not choose a branch of a union."""

        def follow(keyword: str, original: Keyword) -> Keyword:
            def into_faults(validator: Any, reference: Any, value: Any, schema: Any) -> Iterator[ValidationError]:
                if not self._fits.is_valid(value, {keyword: reference}):
                    yield from original(validator, reference, value, schema) or ()

            return into_faults

        def any_of(_: Any, branches: list[Any], value: Any, __: Any) -> Iterator[ValidationError]:
            if not any(self._fits.is_valid(value, branch) for branch in branches):
                yield _fault(f"{_shorten(repr(value))} is not valid under any of the given schemas")

        def one_of(_: Any, branches: list[Any], value: Any, __: Any) -> Iterator[ValidationError]:
            fitting = sum(self._fits.is_valid(value, branch) for branch in branches)
            if fitting != 1:
                under = "any" if fitting == 0 else "more than one"
                yield _fault(f"{_shorten(repr(value))} is valid under {under} of the given schemas")

        own = {"anyOf": any_of, "oneOf": one_of, **_SafeKeywords(self._search).table()}
        return _make(self._schema, own, follow, _CHECKED_FORMATS)

    def _pick(self, error: ValidationError) -> ValidationError:
        """Return a fault of the union's most likely branch, as "not valid under any of …" does not help a reader."""
        while error.validator in _UNIONS:
            faults = [
                list(islice(self._fault_finder.descend(error.instance, branch), _MOST_FAULTS))
                for branch in cast(list[Any], error.validator_value)
            ]
            if not all(faults):  # more than one branch fits
                break
            meant = min(faults, key=lambda found: (any(map(_is_other_kind, found)), len(found)))[0]
            meant.parent = error
            error = meant
        return error

    # --- Invented nulls -----------------------------------------------------------------------------------

    @cached_property
    def _closed_readings(self) -> list[_Reading]:
        """Two readings with closed objects, as on the wire: of the schema itself, and with invented nulls."""
        return [_Reading(self._schema, self._search, closed=True, nulls=nulls) for nulls in (False, True)]

    @cached_property
    def _nullable(self) -> Any:
        return make_validator(self._schema)

    def _clean(self, value: Any, schema: Any) -> Any:
        """Return the value without invented nulls; the same object if there are none."""
        if not isinstance(schema, dict) or not isinstance(value, dict | list):
            return value
        key = (id(value), id(schema))
        if key not in self._cleaned:
            # Stored with the value, so that its id is not reused.
            self._cleaned[key] = (value, self._clean_in_place(value, schema))
        return self._cleaned[key][1]

    def _clean_in_place(self, value: Any, schema: Schema) -> Any:
        if "$ref" in schema:
            value = self._clean(value, self._references.target(schema["$ref"]))
        for part in schema.get("allOf", ()):
            value = self._clean(value, part)
        for union in _UNIONS:
            if union in schema:
                value = self._clean(value, self._choose_branch(value, schema[union]))
        return self._clean_object(value, schema) if isinstance(value, dict) else self._clean_list(value, schema)

    def _clean_object(self, value: dict[str, Any], schema: Schema) -> dict[str, Any]:
        properties = schema.get("properties", {})
        others = schema.get("additionalProperties", True)
        cleaned = {
            name: self._clean(item, properties.get(name, others))
            for name, item in value.items()
            if not (item is None and self._forbids_null(name, schema))
        }
        unchanged = len(cleaned) == len(value) and all(item is value[name] for name, item in cleaned.items())
        return value if unchanged else cleaned

    def _clean_list(self, value: list[Any], schema: Schema) -> list[Any]:
        cleaned = [self._clean(item, _item_schema(schema, index)) for index, item in enumerate(value)]
        return value if all(item is was for item, was in zip(cleaned, value, strict=True)) else cleaned

    def _forbids_null(self, name: str, schema: Schema) -> bool:
        if name in schema.get("required", ()) or name not in schema.get("properties", {}):
            return False
        key = (id(schema), name)
        if key not in self._forbidden:
            self._forbidden[key] = not self._nullable.evolve(schema=schema["properties"][name]).is_valid(None)
        return self._forbidden[key]

    def _choose_branch(self, value: Any, branches: list[Any]) -> Any:
        """Return the first branch that accepts the value unchanged, or else the first that does with invented nulls."""
        for reading in self._closed_readings:
            for branch in branches:
                if reading.is_valid(value, branch):
                    return branch
        return True

    # --- Steps --------------------------------------------------------------------------------------------

    def _count(self, value: Any, schema: Any, counted: dict[tuple[int, int], int]) -> int:
        if not isinstance(schema, dict):
            return 1
        key = (id(value), id(schema))
        if key not in counted:
            parts = [self._references.target(schema["$ref"])] if "$ref" in schema else []
            parts += [*schema.get("allOf", ()), *schema.get("anyOf", ()), *_branches_to_try(value, schema)]
            steps = 1 + sum(self._count(value, part, counted) for part in parts)
            counted[key] = steps + sum(self._count(item, sub, counted) for item, sub in _members(value, schema))
        return counted[key]


class _Reading:
    """Decides whether values fit a schema, and caches the result of each value under each `$ref`."""

    def __init__(
        self,
        schema: Schema,
        search: Callable[[str, str], bool],
        *,
        closed: bool = False,
        nulls: bool = False,
        formats: tuple[str, ...] = (),
    ) -> None:
        # Stored with the value, so that its id is not reused.
        self._found: dict[tuple[str, str, int], tuple[Any, bool]] = {}
        own = _SafeKeywords(search).table()
        if closed:
            own["properties"] = _closed_properties(with_nulls=nulls)
        self._validator = _make(schema, own, self._once, formats)

    def is_valid(self, value: Any, schema: Any) -> bool:
        if schema is True or schema is False:
            return schema
        return bool(self._validator.evolve(schema=schema).is_valid(value))

    def forget(self) -> None:
        self._found.clear()

    def _once(self, keyword: str, original: Keyword) -> Keyword:
        def follow(validator: Any, reference: Any, value: Any, schema: Any) -> Iterator[ValidationError]:
            key = (keyword, str(reference), id(value))
            if key not in self._found:
                faults = iter(original(validator, reference, value, schema) or ())
                self._found[key] = (value, next(faults, None) is None)
            if not self._found[key][1]:
                yield _fault("it does not fit")

        return follow


def _make(
    schema: Schema,
    own: Mapping[str, Keyword],
    follow: Callable[[str, Keyword], Keyword],
    formats: tuple[str, ...],
) -> Any:
    """Return a validator of the schema's draft, with our own keywords and `follow` around its references."""
    from jsonschema import FormatChecker
    from jsonschema.validators import extend

    draft = dialect(schema)
    keywords = {name: keyword for name, keyword in own.items() if name in draft.VALIDATORS}
    keywords |= {name: follow(name, draft.VALIDATORS[name]) for name in _REFERENCES if name in draft.VALIDATORS}
    # A `$ref` to a root that names its draft would fall back to that draft's own validator.
    root = select_keywords(schema, lambda keyword: keyword != "$schema")
    made = extend(draft, keywords)  # type: ignore[no-untyped-call]
    return made(root, registry=offline(), format_checker=FormatChecker(formats))


class _SafeKeywords:
    """Safe versions of the keywords that jsonschema checks by a backtracking engine or in quadratic time."""

    def __init__(self, search: Callable[[str, str], bool]) -> None:
        self._search = search

    def table(self) -> dict[str, Keyword]:
        return {
            "pattern": self._pattern,
            "patternProperties": self._pattern_properties,
            "additionalProperties": self._additional_properties,
            "uniqueItems": _unique_items,
        }

    def _pattern(self, _: Any, wanted: str, value: Any, __: Any) -> Iterator[ValidationError]:
        if isinstance(value, str) and not self._search(wanted, value):
            yield _fault(f"{value!r} does not match {wanted!r}")

    def _pattern_properties(self, validator: Any, patterns: Schema, value: Any, _: Any) -> Iterator[ValidationError]:
        for name, item in value.items() if isinstance(value, dict) else ():
            for wanted, subschema in patterns.items():
                if self._search(wanted, name):
                    yield from validator.descend(item, subschema, path=name, schema_path=wanted)

    def _additional_properties(
        self, validator: Any, wanted: Any, value: Any, schema: Schema
    ) -> Iterator[ValidationError]:
        if not isinstance(value, dict) or wanted is True:
            return
        patterns, properties = schema.get("patternProperties", {}), schema.get("properties", {})
        for name, item in value.items():
            if name in properties or any(self._search(each, name) for each in patterns):
                continue
            if wanted is False:
                yield _fault(f"Additional properties are not allowed ({_shorten(repr(name))} was unexpected)")
            else:
                yield from validator.descend(item, wanted, path=name)


def _unique_items(_: Any, wanted: Any, value: Any, __: Any) -> Iterator[ValidationError]:
    if wanted and isinstance(value, list) and len({_hashable(item) for item in value}) < len(value):
        yield _fault(f"{_shorten(repr(value))} has non-unique elements")


def _closed_properties(*, with_nulls: bool) -> Keyword:
    """Return the keyword `properties` as on the wire: closed and, with `with_nulls`, with nulls for optional ones.

    If objects were open, a branch of a union that has no property `x` would accept a value with `"x": null`.
    """

    def properties(validator: Any, known: Schema, value: Any, schema: Schema) -> Iterator[ValidationError]:
        if not isinstance(value, dict):
            return
        is_closed = not schema.keys() & {"additionalProperties", "patternProperties"}
        required = schema.get("required", ())
        for name, item in value.items():
            if name in known:
                if not (with_nulls and item is None and name not in required):
                    yield from validator.descend(item, known[name])
            elif is_closed:
                yield _fault(f"{name!r} is not declared")

    return properties


@lru_cache(maxsize=256)
def _compile_pattern(pattern: str) -> Any:
    import regex  # unlike `re`, it takes a timeout

    return regex.compile(pattern)


def _fault(message: str) -> ValidationError:
    from jsonschema.exceptions import ValidationError

    return ValidationError(message)


def _is_other_kind(fault: ValidationError) -> bool:
    # A wrong tag or a wrong type: the answer was not written for this branch.
    return fault.validator == "const" or (fault.validator == "type" and not fault.relative_path)


def _shorten(text: str) -> str:
    return text if len(text) <= _LONGEST_QUOTE else f"{text[:100]} ..."


def _hashable(value: Any) -> Any:
    """Return a hashable key that is equal for values that are equal in JSON, where 1 is 1.0 and not true."""
    if isinstance(value, bool):
        return (bool, value)
    if isinstance(value, list):
        return tuple(map(_hashable, value))
    if isinstance(value, dict):
        return frozenset((name, _hashable(item)) for name, item in value.items())
    return value


def _item_schema(schema: Schema, index: int) -> Any:
    items = schema.get("items", True)
    # Before 2020-12, a list under `items` had the meaning of `prefixItems`.
    first, rest = (items, schema.get("additionalItems", True)) if isinstance(items, list) else ([], items)
    first = schema.get("prefixItems", first)
    return first[index] if index < len(first) else rest


def _members(value: Any, schema: Schema) -> Iterator[tuple[Any, Any]]:
    """Return the items of a value, each with the schema that it is checked against."""
    if isinstance(value, dict):
        properties, others = schema.get("properties", {}), schema.get("additionalProperties", True)
        yield from ((item, properties.get(name, others)) for name, item in value.items())
    elif isinstance(value, list):
        yield from ((item, _item_schema(schema, index)) for index, item in enumerate(value))


def _branches_to_try(value: Any, schema: Schema) -> list[Any]:
    """Return the branches of a `oneOf` to try; only one if a discriminator names it."""
    branches: list[Any] = schema.get("oneOf", [])
    discriminator = schema.get("discriminator")
    if not isinstance(discriminator, dict) or not isinstance(value, dict):
        return branches
    named = discriminator.get("mapping", {}).get(str(value.get(discriminator.get("propertyName"))))
    return [branch for branch in branches if branch == {"$ref": named}]
