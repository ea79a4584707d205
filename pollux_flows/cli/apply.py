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

    A value may come from the environment, as `{env: GEMINI_API_KEY}`, and a secret must. A secret that is left out is
    not changed on the server. Nothing is saved unless all files are valid.
    """
    with refusals_in_words():
        specs = [spec for file in _files(paths or (_FOLDER,)) for spec in _read_specs(file)]
        for line in asyncio.run(_save_blocks(specs)):
            say(line)


@dataclass(frozen=True)
class _BlockSpec:
    """A block as a file describes it."""

    kind: type[Block]
    name: str
    fields: Mapping[str, Any]
    where: str

    def check(self) -> None:
        """Refuse an invalid block, and a secret that is written in the file."""
        if unknown := sorted(self.fields.keys() - self.kind.model_fields):
            allowed = ", ".join(self.kind.model_fields)
            raise ConfigurationError(
                f"{self.where}: {', '.join(unknown)} is not among its fields, which are {allowed}.",
                hint="Correct the name, or leave the field out.",
            )
        for field in _secrets(self.kind) & self.fields.keys():
            if self.fields[field] is not None and not _is_reference(self.fields[field]):
                raise ConfigurationError(
                    f"{self.where}: {field} is a secret, and is written in the file.",
                    hint=f"Write {field}: {{env: A_VARIABLE}}, or leave it out. If others saw it, replace the secret.",
                )
        self.block({})

    def block(self, saved: Mapping[str, Any]) -> Block:
        """Return the block, with fields of the saved block where the file leaves them out."""
        fields = {field: _resolve(value, self.where) for field, value in self.fields.items()}
        try:
            return self.kind(**{**saved, **fields})
        except ConfigurationError as error:
            problem, hint = error.message, error.hint
        except ValidationError as error:
            problem, hint = describe(self.kind, error), advise(self.kind, error)
        # Raised outside the handler, as Pydantic's error quotes the input.
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


def _read_specs(file: Path) -> Iterator[_BlockSpec]:
    for title, fields in _read(file).items():
        where = f"{file}, {title}"
        slug, _, name = str(title).partition("/")
        if not _NAME.fullmatch(name):
            hint = "Write type/name, of lowercase letters, digits and dashes."
            raise ConfigurationError(f"{where} has no name that Prefect accepts.", hint=hint)
        if not isinstance(fields, dict):
            raise ConfigurationError(f"{where} is not a block with its fields.", hint=_LIKE_THIS)
        spec = _BlockSpec(_kind(slug, where), name, fields, where)
        spec.check()
        yield spec


def _read(file: Path) -> dict[object, object]:
    try:
        data, problem = yaml.safe_load(file.read_text(encoding="utf-8")), None
    except yaml.MarkedYAMLError as error:  # its text quotes the file, and perhaps a key
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
        raise ConfigurationError(f"{where}: there is no block type {slug!r}.", hint=f"Write one of {ours}.") from None


def _secrets(kind: type[Block]) -> set[str]:
    return {str(path).partition(".")[0] for path in kind.model_json_schema().get("secret_fields", [])}


def _is_reference(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"env"}


def _resolve(value: Any, where: str) -> Any:
    """Return the value with its references to environment variables replaced."""
    if _is_reference(value):
        name = str(value["env"])
        if not (found := from_environment(name)):
            raise ConfigurationError(
                f"{where} takes a value from {name}, which is not set.", hint=f"Set {name} here, or in the file .env."
            )
        return found
    if isinstance(value, dict):
        return {key: _resolve(each, where) for key, each in value.items()}
    return [_resolve(each, where) for each in value] if isinstance(value, list) else value


async def _save_blocks(specs: Sequence[_BlockSpec]) -> list[str]:
    """Save all blocks, and return a line about each."""
    await aregister_block_types()  # even the types that no file has a block of
    return [f"{spec.kind.get_block_type_slug()}/{spec.name}: {await _save(spec)}" for spec in specs]


async def _save(spec: _BlockSpec) -> str:
    """Save the block unless it is unchanged, and return what was done."""
    async with get_client() as client:
        document = await read_document(client, spec.kind, spec.name)
    if document is None:
        await spec.block({}).asave(spec.name)
        return "created"
    saved = _own_fields(await spec.kind.aload(spec.name))
    block = spec.block({field: saved[field] for field in _secrets(spec.kind)})
    data = _own_fields(block)
    changed = [field for field in data if data[field] != saved[field]]
    if not has_current_form(document, spec.kind):
        changed.append("its form in the UI")
    if not changed:
        return "unchanged"
    await block.asave(spec.name, overwrite=True)
    return f"changed ({', '.join(changed)})"


def _own_fields(block: Block) -> dict[str, Any]:
    """Return all fields of a block with their values, including secrets."""
    data = block.model_dump(context={"include_secrets": True}, mode="json")
    return {field: data[field] for field in type(block).model_fields}
