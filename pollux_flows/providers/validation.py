"""What a JSON Schema says: is it usable, does an answer keep to it, which nulls were invented for it.

`schema.py` writes schemas for the providers; this module only reads them. Both walk a schema by structure,
never by the name of a key: `properties` is a keyword in a schema, an ordinary name among the properties, and
plain data in an enum.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from jsonschema.exceptions import ValidationError

Schema: TypeAlias = dict[str, Any]

# Where schemas sit inside a schema. All else (enum, const, default, examples ...) is data and never entered.
# fmt: off
_HOLDS_ONE = {
    "items", "additionalItems", "unevaluatedItems", "contains", "contentSchema",
    "additionalProperties", "unevaluatedProperties", "propertyNames", "not", "if", "then", "else",
}
_HOLDS_LIST = {"allOf", "anyOf", "oneOf", "prefixItems", "items"}
_HOLDS_MAP = {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies"}

DEFINITIONS = {"$defs", "definitions"}
# These apply to the very value that the schema applies to, not to a part of it.
_IN_PLACE = {"allOf", "anyOf", "oneOf", "not", "if", "then", "else", "dependentSchemas"}
# fmt: on

# Formats that are cheap to check and that all readers of an answer agree on. `date-time` is not among them:
# RFC 3339 wants an offset, Pydantic does not, and an answer that was paid for is not thrown away over that.
_CHECKED_FORMATS = ("date", "email", "ipv4", "ipv6", "uuid")
_LONGEST_MESSAGE = 300


def map_subschemas(schema: Schema, change: Callable[[Any], Any]) -> Schema:
    """The schema with `change` applied to the schemas (true and false are schemas too) directly inside it."""
    return {keyword: _map_keyword(keyword, value, change) for keyword, value in schema.items()}


def _map_keyword(keyword: str, value: Any, change: Callable[[Any], Any]) -> Any:
    if keyword in _HOLDS_MAP and isinstance(value, dict):
        # Draft 7 `dependencies` may also hold lists of names.
        return {name: change(sub) if isinstance(sub, dict | bool) else sub for name, sub in value.items()}
    if keyword in _HOLDS_LIST and isinstance(value, list):
        return [change(sub) for sub in value]
    if keyword in _HOLDS_ONE and isinstance(value, dict | bool):
        return change(value)
    return value


class References:
    """The `$ref`s of one schema, resolved inside that schema and nowhere else."""

    def __init__(self, root: Schema) -> None:
        from referencing.jsonschema import DRAFT202012

        self._root = root
        self._resolver = _offline().resolver_with_root(DRAFT202012.create_resource(root))

    def target(self, reference: str) -> Any:
        from referencing.exceptions import Unresolvable

        try:
            return self._resolver.lookup(reference).contents
        except Unresolvable:
            raise LookupError(reference) from None

    def recursive(self) -> set[str]:
        """The references whose target contains them again, at any depth."""
        return self._on_a_cycle(_references_within)

    def endless(self) -> set[str]:
        """The references that lead back to themselves without ever looking at a smaller part of the value."""
        return self._on_a_cycle(_references_in_place)

    def reachable(self) -> set[str]:
        return self._reach(_references_everywhere(self._root), _references_within)

    def _on_a_cycle(self, follow: Callable[[Any], set[str]]) -> set[str]:
        return {ref for ref in self.reachable() if ref in self._reach(follow(self.target(ref)), follow)}

    def _reach(self, start: Iterable[str], follow: Callable[[Any], set[str]]) -> set[str]:
        seen: set[str] = set()
        ahead = list(start)
        while ahead:
            reference = ahead.pop()
            if reference not in seen:
                seen.add(reference)
                ahead.extend(follow(self.target(reference)))
        return seen


def without_invented_nulls(value: Any, schema: Schema) -> Any:
    """The answer without the nulls that only the wire form of `schema` allowed.

    OpenAI's strict mode has no optional properties, so `for_openai` makes them nullable. Here a null goes if
    its property is optional in `schema`, the original, and may not be null there; every other null stays.
    """
    return _NullRemover(schema).clean(value, schema)


class _NullRemover:
    def __init__(self, schema: Schema) -> None:
        self._references = References(schema)
        self._original = make_validator(schema)
        self._readings = [_make_reader(schema, with_nulls=False), _make_reader(schema, with_nulls=True)]

    def clean(self, value: Any, schema: Any) -> Any:
        if not isinstance(schema, dict):
            return value
        if "$ref" in schema:
            value = self.clean(value, self._references.target(schema["$ref"]))
        for part in schema.get("allOf", ()):
            value = self.clean(value, part)
        for union in ("anyOf", "oneOf"):
            if union in schema:
                value = self.clean(value, self._choose_branch(value, schema[union]))
        if isinstance(value, dict):
            return self._clean_object(value, schema)
        if isinstance(value, list):
            return self._clean_list(value, schema)
        return value

    def _clean_object(self, value: dict[str, Any], schema: Schema) -> dict[str, Any]:
        properties = schema.get("properties", {})
        others = schema.get("additionalProperties", True)
        return {
            name: self.clean(item, properties.get(name, others))
            for name, item in value.items()
            if not (item is None and self._forbids_null(name, schema))
        }

    def _forbids_null(self, name: str, schema: Schema) -> bool:
        if name in schema.get("required", ()) or name not in schema.get("properties", {}):
            return False
        return not self._original.evolve(schema=schema["properties"][name]).is_valid(None)

    def _clean_list(self, value: list[Any], schema: Schema) -> list[Any]:
        items = schema.get("items", True)
        # Before 2020-12 a list under `items` was what `prefixItems` is now.
        first, rest = (items, schema.get("additionalItems", True)) if isinstance(items, list) else ([], items)
        first = schema.get("prefixItems", first)
        return [self.clean(item, first[i] if i < len(first) else rest) for i, item in enumerate(value)]

    def _choose_branch(self, value: Any, branches: list[Any]) -> Any:
        """The branch that was answered: the first to take the value as it is, else with invented nulls."""
        for reader in self._readings:
            for branch in branches:
                if reader.evolve(schema=branch).is_valid(value):
                    return branch
        return True


def _make_reader(schema: Schema, *, with_nulls: bool) -> Any:
    """A validator that reads objects as on the wire: closed, and on demand with nulls for the optional.

    Read open, a branch of a union that has no property `x` would claim a value with `"x": null`.
    """
    from jsonschema.exceptions import ValidationError
    from jsonschema.validators import extend

    def read_properties(validator: Any, properties: Schema, value: Any, schema: Schema) -> Iterator[ValidationError]:
        if not isinstance(value, dict):
            return
        is_closed = not schema.keys() & {"additionalProperties", "patternProperties"}
        required = schema.get("required", ())
        for name, item in value.items():
            if name in properties:
                if not (with_nulls and item is None and name not in required):
                    yield from validator.descend(item, properties[name])
            elif is_closed:
                yield ValidationError(f"{name!r} is not declared")

    draft = _draft_of(schema)
    reader = extend(draft, {"properties": read_properties})  # type: ignore[no-untyped-call]
    # A `$ref` to a root that names its draft would fall back to that draft's own validator.
    root = _select(schema, lambda keyword: keyword != "$schema")
    return reader(root, registry=_offline())


def problems(value: Any, schema: Schema) -> list[str]:
    """What is wrong with an answer, one line a fault: `$.items[2].price: 'x' is not of type 'number'`."""
    errors = make_validator(schema, formats=_CHECKED_FORMATS).iter_errors(value)
    return [_describe(_find_fault(error)) for error in errors]


def check(schema: Any) -> str | None:
    """Why this is no JSON Schema that an answer can be asked for and checked with; None if it is one."""
    from jsonschema.exceptions import SchemaError

    if not isinstance(schema, dict):
        return f"a JSON Schema is an object, not {type(schema).__name__}"
    try:
        _draft_of(schema).check_schema(schema)
    except SchemaError as error:
        return _describe(error)
    return _find_moved_base(schema) or _find_bad_reference(schema)


def _find_moved_base(root: Schema) -> str | None:
    if any("$id" in schema for schema in _walk(root) if schema is not root):
        return "$id below the root changes what the references mean; put the definitions into $defs without it"
    return None


def _find_bad_reference(root: Schema) -> str | None:
    references = References(root)
    try:
        for reference in sorted(references.reachable()):
            if not isinstance(references.target(reference), dict | bool):
                return f"$ref {reference!r} does not point to a schema"
    except LookupError as error:
        (reference,) = error.args
        if reference.startswith("#"):
            return f"$ref {reference!r} points to nothing"
        return f"$ref {reference!r} points elsewhere, and nothing is fetched; copy its target into $defs"
    for reference in sorted(references.endless()):
        return f"$ref {reference!r} leads back to itself without end"
    return None


def make_validator(schema: Schema, *, formats: tuple[str, ...] = ()) -> Any:
    from jsonschema import FormatChecker

    return _draft_of(schema)(schema, registry=_offline(), format_checker=FormatChecker(formats))


def _draft_of(schema: Schema) -> Any:
    from jsonschema import Draft202012Validator
    from jsonschema.validators import validator_for

    return validator_for(schema, default=Draft202012Validator)


def _offline() -> Any:
    """An empty registry: unlike jsonschema's own default it fetches nothing from the network."""
    from referencing import Registry

    return Registry()


def _describe(error: Any) -> str:
    message = error.message
    if len(message) > _LONGEST_MESSAGE:  # it quotes the value first, maybe a whole document, then the fault
        message = f"{message[:100]} ... {message[-180:]}"
    return f"{error.json_path}: {message}"


def _find_fault(error: ValidationError) -> ValidationError:
    """Down into the branch that was meant: "not valid under any of the given schemas" helps nobody."""
    while error.context:
        branches: dict[Any, list[ValidationError]] = {}
        for fault in error.context:
            branches.setdefault(fault.relative_schema_path[0], []).append(fault)
        error = min(branches.values(), key=lambda faults: (any(map(_is_other_kind, faults)), len(faults)))[0]
    return error


def _is_other_kind(fault: ValidationError) -> bool:
    # A wrong tag, or not even the right type: this branch was not the one that was meant.
    return fault.validator == "const" or (fault.validator == "type" and not fault.relative_path)


def _children(schema: Schema) -> list[Any]:
    found: list[Any] = []

    def note(sub: Any) -> Any:
        found.append(sub)
        return sub

    map_subschemas(schema, note)
    return found


def _walk(schema: Any) -> list[Schema]:
    if not isinstance(schema, dict):
        return []
    return [schema, *(found for child in _children(schema) for found in _walk(child))]


def _references_everywhere(schema: Any) -> set[str]:
    return {sub[keyword] for sub in _walk(schema) for keyword in ("$ref", "$dynamicRef") if keyword in sub}


def _references_within(schema: Any) -> set[str]:
    # A definition counts only once something refers to it.
    return _references_everywhere(_select(schema, lambda keyword: keyword not in DEFINITIONS))


def _references_in_place(schema: Any) -> set[str]:
    if not isinstance(schema, dict):
        return set()
    own = {schema["$ref"]} if "$ref" in schema else set()
    return own.union(*map(_references_in_place, _children(_select(schema, _IN_PLACE.__contains__))))


def _select(schema: Any, keep: Callable[[str], bool]) -> Schema:
    if not isinstance(schema, dict):
        return {}
    return {keyword: value for keyword, value in schema.items() if keep(keyword)}
