"""MapSpec: how the rows of a table become calls, as a document, so that any machine can answer a chunk."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any, Final

from pydantic import Field

from pollux_flows import capabilities
from pollux_flows.access import Restrictions, apply_restrictions, current_restrictions
from pollux_flows.config import Target
from pollux_flows.document import Document
from pollux_flows.errors import ConfigurationError
from pollux_flows.options import Options
from pollux_flows.plain import Text
from pollux_flows.tables.template import Template

_ONE_ANSWER: Final = "Each row is asked once. Use converse for tools and longer conversations."


class MapSpec(Document):
    """A prompt about the rows of a table: the template, the source columns, the target and the options."""

    prompt: Text = Field(description="The template, with columns in braces.")
    source_columns: list[Text] = Field(default_factory=list)
    target: Target
    options: Options = Options()
    folders: list[Text] = Field(default_factory=list, description="The folders that paths in the table may lead to.")
    private: list[Text] = Field(default_factory=list, description="The folders that they may not lead to.")

    @cached_property
    def template(self) -> Template:
        """The parsed prompt."""
        return Template.parse(self.prompt)

    @property
    def columns(self) -> list[str]:
        """The columns that calls depend on."""
        return list(dict.fromkeys([*self.template.columns, *self.source_columns]))

    def check(self) -> None:
        """Refuse options that cannot be used with a table, before the table is read."""
        options = self.options
        _ = self.template
        for name in ("tools", "tool_choice", "continue_from", "cache"):
            if getattr(options, name) is not None:
                raise ConfigurationError(f"{name} cannot be used with a table.", hint=_ONE_ANSWER)
        if options.history is not None and self.source_columns:
            raise ConfigurationError(
                "A history cannot be combined with source columns.", hint="Leave one of the two out."
            )
        capabilities.check(self.target, options, [])

    def restrict(self) -> AbstractContextManager[None]:
        """Apply the restrictions of the run or, in a script, those of a table, whose content is often not trusted.

        Paths in its cells must be in `folders`. What the options name is allowed, as the caller wrote them.
        """
        own = Restrictions(
            folders=self.folders,
            private=self.private,
            schemas=frozenset(_import_strings(self.options.response_schema)),
        )
        return apply_restrictions(current_restrictions() or own)


def _import_strings(schema: Any) -> Sequence[str]:
    if isinstance(schema, type):
        return [f"{schema.__module__}:{schema.__qualname__}"]
    return [schema] if isinstance(schema, str) else []
