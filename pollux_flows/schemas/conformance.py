"""Conformance: checks answers against their schemas, in time linear in the answer's length.

An answer is written by a model, and may have been steered by the author of a source. Checked naively, a recursive union
tries every combination of its branches (ten levels of three took a minute), and a pattern may backtrack for ever. Here
each value is checked against each `$ref` once, and patterns run under a deadline.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
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

# Formats that are cheap to check and that all validators agree on. `date-time` is not among them:
# RFC 3339 wants an offset, Pydantic does not, and an answer that was paid for is not discarded over that.
_CHECKED_FORMATS: Final = ("date", "email", "ipv4", "ipv6", "uuid")
_REFERENCES: Final = ("$ref", "$dynamicRef", "$recursiveRef")
_UNIONS: Final = ("anyOf", "oneOf")
_LONGEST_QUOTE: Final = 300
# More faults are of no use to a reader, and an answer may have a million.
_MOST_FAULTS: Final = 20


class Conformance:
    """Validates answers against one schema. Not thread-safe: it caches its findings about the current answer."""

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
        faults = islice(self._find_faults(value, self._schema), _MOST_FAULTS)
        return [describe(self._pick(error)) for error in faults]

    def without_invented_nulls(self, value: Any) -> Any:
        """Return the answer without the nulls that only the wire form of the schema allowed.

        OpenAI's strict mode has no optional properties, so `for_openai` makes them nullable. A null is removed if its
        property is optional in the schema and may not be null there; every other null stays.
        """
        self._begin()
        return self._clean(value, self._schema)

    def _begin(self) -> None:
        self._deadline = time.monotonic() + self._limit_s
        self._cleaned.clear()
        for reading in (self._fits, *(self._closed if "_closed" in vars(self) else ())):
            reading.forget()

    def _search(self, pattern: str, text: str) -> bool:
        left = max(self._deadline - time.monotonic(), 0.001)
        try:
            # With `concurrent`, the search releases the GIL.
            return _compiled(pattern).search(text, timeout=left, concurrent=True) is not None
        except TimeoutError:
            problem = f"the pattern {_shorten(pattern)} was not done with {_shorten(repr(text))} in {self._limit_s:g} s"
            raise TimeoutError(problem) from None

    # --- Faults -------------------------------------------------------------------------------------------

    def _find_faults(self, value: Any, schema: Any, parent: ValidationError | None = None) -> Iterator[ValidationError]:
        """Find the faults of a value, within its references but not within the branches of unions."""
        for error in self._fits.faults(value, schema):
            error.parent = parent
            if error.validator in _REFERENCES:
                target = self._references.target(str(error.validator_value))
                yield from self._find_faults(error.instance, target, error)
            else:
                yield error

    def _pick(self, error: ValidationError) -> ValidationError:
        """Return a fault from the union's most likely branch: "not valid under any of …" alone helps no reader."""
        while error.validator in _UNIONS:
            faults = [
                list(islice(self._find_faults(error.instance, branch, error), _MOST_FAULTS))
                for branch in cast(list[Any], error.validator_value)
            ]
            if not all(faults):  # more than one branch fits
                break
            error = min(faults, key=lambda found: (any(map(_is_other_kind, found)), len(found)))[0]
        return error

    # --- Invented nulls -----------------------------------------------------------------------------------

    @cached_property
    def _closed(self) -> list[_Reading]:
        """Two readings with closed objects, as on the wire: the schema as it is, and with invented nulls."""
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
            # With the value, so that its id is not reused.
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
        """Return the first branch that accepts the value as it is, else the first with invented nulls."""
        for reading in self._closed:
            for branch in branches:
                if reading.is_valid(value, branch):
                    return branch
        return True


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
        from jsonschema import FormatChecker
        from jsonschema.validators import extend

        # With the value, so that its id is not reused.
        self._found: dict[tuple[str, str, int], tuple[Any, bool]] = {}
        known = dialect(schema).VALIDATORS
        keywords = {name: self._once(name, known[name]) for name in _REFERENCES if name in known}
        keywords["pattern"] = _keyword_pattern(search)
        if closed:
            keywords["properties"] = _closed_properties(with_nulls=nulls)
        # A `$ref` to a root that names its draft would fall back to that draft's own validator.
        root = select_keywords(schema, lambda keyword: keyword != "$schema")
        made = extend(dialect(schema), keywords)  # type: ignore[no-untyped-call]
        self._validator = made(root, registry=offline(), format_checker=FormatChecker(formats))

    def is_valid(self, value: Any, schema: Any) -> bool:
        if schema is True or schema is False:
            return schema
        return bool(self._validator.evolve(schema=schema).is_valid(value))

    def faults(self, value: Any, schema: Any) -> Iterator[ValidationError]:
        """Find the faults of a value outside of its references; of each reference that it does not fit, only that."""
        yield from self._validator.evolve(schema=schema).iter_errors(value)

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


def _keyword_pattern(search: Callable[[str, str], bool]) -> Keyword:
    """Return the keyword `pattern`, which jsonschema would search for with an engine that cannot be stopped."""

    def pattern(_: Any, wanted: str, value: Any, __: Any) -> Iterator[ValidationError]:
        if isinstance(value, str) and not search(wanted, value):
            yield _fault(f"{value!r} does not match {wanted!r}")

    return pattern


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
def _compiled(pattern: str) -> Any:
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


def _item_schema(schema: Schema, index: int) -> Any:
    items = schema.get("items", True)
    # Before 2020-12 a list under `items` was what `prefixItems` is now.
    first, rest = (items, schema.get("additionalItems", True)) if isinstance(items, list) else ([], items)
    first = schema.get("prefixItems", first)
    return first[index] if index < len(first) else rest
