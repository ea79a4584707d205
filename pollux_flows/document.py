"""Document: plain data that goes through JSON and comes back equal."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from pollux_flows.errors import ConfigurationError, PolluxError
from pollux_flows.plain import replace_surrogates

CLEAN_INPUT: Final = "clean input"
"""The validation context of a record whose values have already had their surrogates replaced."""


class Document(BaseModel):
    """A frozen model that reports invalid input as a readable PolluxError.

    Two documents are equal when their JSON is equal: values outside the JSON (a key, a class) do not count.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    refusal: ClassVar[type[PolluxError]] = ConfigurationError

    @model_validator(mode="wrap")
    @classmethod
    def _report_errors(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(data)
        except ValidationError as error:
            problem, hint = describe(cls, error), advise(cls, error)
        # Raised outside the handler, as Pydantic's error quotes the input, perhaps a key, and must not be its context.
        raise cls.refusal(problem, hint=hint)

    @classmethod
    def model_validate_json(cls, json_data: str | bytes | bytearray, **settings: Any) -> Self:
        """Parse and validate a document from its JSON."""
        try:
            return super().model_validate_json(json_data, **settings)
        except ValidationError as error:  # invalid JSON does not reach the validators
            problem, hint = describe(cls, error), advise(cls, error)
        raise cls.refusal(problem, hint=hint)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy; with `update`, the copy is validated like any other document."""
        copied = super().model_copy(deep=deep)
        return type(self).model_validate({**dict(copied), **update}) if update else copied

    if not TYPE_CHECKING:  # type checkers handle `frozen` themselves, and better

        def __setattr__(self, name: str, value: object) -> None:
            raise self._unchangeable()

        def __delattr__(self, name: str) -> None:
            raise self._unchangeable()

    def _unchangeable(self) -> PolluxError:
        kind = type(self).__name__
        return self.refusal(f"{kind} cannot be changed.", hint="Make another, or a copy with model_copy(update={…}).")

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Document) or type(self) is not type(other):
            return NotImplemented
        return self.model_dump_json() == other.model_dump_json()

    def __hash__(self) -> int:
        return hash(self.model_dump_json())


class Record(Document):
    """A document that is stored. Unknown fields are ignored, and lone surrogates are replaced.

    It may be read by another version of this package, and much of its text was written by a provider.
    """

    # A newer version may have added fields.
    model_config = ConfigDict(extra="ignore")

    @model_validator(mode="before")
    @classmethod
    def _replace_surrogates(cls, data: Any, info: ValidationInfo) -> Any:
        return data if info.context is CLEAN_INPUT else replace_surrogates(data)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy; surrogates are replaced only in the changed fields, as the others are clean already."""
        copied = super().model_copy(deep=deep)
        return (
            type(self).model_validate({**dict(copied), **replace_surrogates(dict(update))}, context=CLEAN_INPUT)
            if update
            else copied
        )


def describe(cls: type[BaseModel], error: ValidationError) -> str:
    """Describe the validation errors without quoting the input, which may hold a key."""
    problems = []
    for item in error.errors(include_input=False, include_url=False, include_context=False):
        where = ".".join(str(step) for step in item["loc"])
        if item["type"] == "extra_forbidden":
            allowed = ", ".join(cls.model_fields)
            problems.append(f"{where} is not a field of {cls.__name__}; its fields are {allowed}")
        elif item["type"] == "missing":
            problems.append(f"{where} is missing")
        else:
            message = item["msg"].removeprefix("Value error, ")
            message = message[:1].lower() + message[1:]
            problems.append(f"{where}: {message}" if where else message)
    return f"{cls.__name__} is not usable: {'; '.join(problems)}."


def advise(cls: type[BaseModel], error: ValidationError) -> str:
    """Return a hint that corrects the first of these errors, without quoting the input, which may hold a key."""
    item = error.errors(include_input=False, include_url=False, include_context=False)[0]
    if not item["loc"]:
        return f"Pass a JSON object with the fields of {cls.__name__}: {', '.join(cls.model_fields)}."
    where, name = ".".join(str(step) for step in item["loc"]), str(item["loc"][0])
    if item["type"] == "extra_forbidden":
        close = get_close_matches(name, cls.model_fields, n=1)
        return f"Write {close[0]} instead of {name}." if close else f"Leave {where} out."
    field = cls.model_fields.get(name)
    verb = "Set" if item["type"] == "missing" else "Correct"
    return f"{verb} {where}: {field.description}" if field and field.description else f"{verb} {where}."
