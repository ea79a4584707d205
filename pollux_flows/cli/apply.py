"""pollux-flows apply: save blocks on a Prefect server, from files."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import yaml
from cyclopts import Parameter
from prefect.blocks.core import Block
from prefect.client.orchestration import get_client
from prefect.utilities.dispatch import lookup_type
from pydantic import ValidationError

from pollux_flows import blocks
from pollux_flows.blocks.registration import aregister_block_types, has_current_form, read_document
from pollux_flows.cli.printing import refusals_in_words, say
from pollux_flows.config import from_environment
from pollux_flows.document import advise, describe
from pollux_flows.errors import ConfigurationError

_NAME: Final = re.compile("[a-z0-9-]+")
_FOLDER: Final = Path("blocks")
_LIKE_THIS: Final = "Write it like pollux-provider/a-name: {provider: gemini, model: gemini-2.5-flash-lite}"


def apply(
    *paths: Annotated[Path, Parameter(help="YAML files, or folders with them. By default, blocks/.")],
) -> None:
    """Save blocks on the Prefect server, from YAML files that name each as `type/name`.

    A value may come from the environment, as `{env: GEMINI_API_KEY}`, and a secret must. A secret that is left out
    stays as it is on the server. Nothing is saved unless all files are valid.
    """
    with refusals_in_words():
        wanted = [one for file in _files(paths or (_FOLDER,)) for one in _wanted(file)]
        for line in asyncio.run(_applied(wanted)):
            say(line)


@dataclass(frozen=True)
class _Wanted:
    """A block as a file describes it."""

    kind: type[Block]
    name: str
    fields: Mapping[str, Any]
    where: str

    def check(self) -> None:
        """Refuse what could not be saved, and a key that stands in the file."""
        if unknown := sorted(self.fields.keys() - self.kind.model_fields):
            allowed = ", ".join(self.kind.model_fields)
            raise ConfigurationError(
                f"{self.where}: {', '.join(unknown)} is not among its fields, which are {allowed}.",
                hint="Correct the name, or leave the field out.",
            )
        for field in _secrets(self.kind) & self.fields.keys():
            if self.fields[field] is not None and not _is_reference(self.fields[field]):
                raise ConfigurationError(
                    f"{self.where}: {field} is a secret, and stands in the file.",
                    hint=f"Write {field}: {{env: A_VARIABLE}}, or leave it out; and if others saw the file, change it.",
                )
        self.block({})

    def block(self, saved: Mapping[str, Any]) -> Block:
        """Return the block, with the fields of the saved one that the file leaves out."""
        fields = {field: _resolved(value, self.where) for field, value in self.fields.items()}
        try:
            return self.kind(**{**saved, **fields})
        except ConfigurationError as error:
            problem, hint = error.message, error.hint
        except ValidationError as error:
            problem, hint = describe(self.kind, error), advise(self.kind, error)
        # Raised out here: Pydantic's own error quotes the input.
        raise ConfigurationError(f"{self.where}: {problem}", hint=hint)


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_file():
            yield path
            continue
        found = sorted(path.glob("*.yaml"))
        if not found:
            raise ConfigurationError(
                f"There is no file {path}, nor a folder of that name with *.yaml files.",
                hint="Name the file to apply, or let pollux-flows init write an example.",
            )
        yield from found


def _wanted(file: Path) -> Iterator[_Wanted]:
    for title, fields in _read(file).items():
        where = f"{file}, {title}"
        slug, _, name = str(title).partition("/")
        if not _NAME.fullmatch(name):
            hint = "Write type/name, of lowercase letters, digits and dashes."
            raise ConfigurationError(f"{where} has no name that Prefect takes.", hint=hint)
        if not isinstance(fields, dict):
            raise ConfigurationError(f"{where} is no block with its fields.", hint=_LIKE_THIS)
        one = _Wanted(_kind(slug, where), name, fields, where)
        one.check()
        yield one


def _read(file: Path) -> dict[object, object]:
    try:
        data, problem = yaml.safe_load(file.read_text(encoding="utf-8")), None
    except yaml.MarkedYAMLError as error:  # whose text quotes the file, and maybe a key
        line = "" if error.problem_mark is None else f" in line {error.problem_mark.line + 1}"
        data, problem = None, f"{error.problem}{line}"
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        data, problem = None, str(error)
    if problem is not None:
        raise ConfigurationError(f"{file} cannot be read as YAML: {problem}.", hint=_LIKE_THIS)
    if not isinstance(data, dict) or not data:
        raise ConfigurationError(f"{file} names no blocks.", hint=_LIKE_THIS)
    return data


def _kind(slug: str, where: str) -> type[Block]:
    try:
        return lookup_type(Block, slug)
    except KeyError:
        ours = ", ".join(getattr(blocks, name).get_block_type_slug() for name in blocks.__all__)
        raise ConfigurationError(f"{where}: no block type is called {slug!r}.", hint=f"Ours are {ours}.") from None


def _secrets(kind: type[Block]) -> set[str]:
    return {str(path).partition(".")[0] for path in kind.model_json_schema().get("secret_fields", [])}


def _is_reference(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"env"}


def _resolved(value: Any, where: str) -> Any:
    """The value, with what it takes from the environment."""
    if _is_reference(value):
        name = str(value["env"])
        if not (found := from_environment(name)):
            raise ConfigurationError(
                f"{where} takes a value from {name}, which is not set.", hint=f"Set {name} here, or in the file .env."
            )
        return found
    if isinstance(value, dict):
        return {key: _resolved(each, where) for key, each in value.items()}
    return [_resolved(each, where) for each in value] if isinstance(value, list) else value


async def _applied(wanted: Sequence[_Wanted]) -> list[str]:
    await aregister_block_types()  # also those types that no file has a block of
    return [f"{one.kind.get_block_type_slug()}/{one.name}: {await _saved(one)}" for one in wanted]


async def _saved(one: _Wanted) -> str:
    """Save the block, unless it says what is there already, and tell which."""
    async with get_client() as client:
        document = await read_document(client, one.kind, one.name)
    if document is None:
        await one.block({}).asave(one.name)
        return "created"
    there = _own_fields(await one.kind.aload(one.name))
    block = one.block({field: there[field] for field in _secrets(one.kind)})
    data = _own_fields(block)
    changed = [field for field in data if data[field] != there[field]]
    if not has_current_form(document, one.kind):
        changed.append("its form in the UI")
    if not changed:
        return "as it was"
    await block.asave(one.name, overwrite=True)
    return f"changed ({', '.join(changed)})"


def _own_fields(block: Block) -> dict[str, Any]:
    """All fields with their values, secrets too: to compare, and to keep."""
    data = block.model_dump(context={"include_secrets": True}, mode="json")
    return {field: data[field] for field in type(block).model_fields}
