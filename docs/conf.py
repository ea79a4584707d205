"""The settings of Sphinx, which `make docs` runs."""

import inspect
import textwrap
from typing import Any

from prefect import Flow
from prefect.blocks.core import Block
from pydantic import BaseModel
from sphinx.application import Sphinx

from pollux_flows import __version__, flows

project = "pollux_flows"
release = __version__
html_title = f"pollux_flows {release}"
html_theme = "furo"
html_copy_source = False
html_show_copyright = False

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 3
default_role = "code"  # docstrings write `name`
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
toc_object_entries_show_parents = "hide"


def show_flows_as_functions() -> None:
    """Put the function of each flow in the place of the flow, which is an object to Sphinx."""
    for name in flows.__all__:
        flow: Flow[Any, Any] = getattr(flows, name)
        setattr(flows, name, flow.fn)


def list_fields(_app: Sphinx, _what: str, _name: str, obj: object, _options: Any, lines: list[str]) -> None:
    """Add the fields of a model to its docstring, with their descriptions."""
    if not (isinstance(obj, type) and issubclass(obj, BaseModel)):
        return
    if issubclass(obj, Block):  # whose example is Markdown, for the UI
        lines[:] = textwrap.dedent(obj.__doc__ or "").partition("Example:")[0].splitlines()
    for name, field in obj.model_fields.items():
        if field.description:
            default = "" if field.is_required() or field.default_factory else f" Default: ``{field.default!r}``."
            lines.append(f":param {name}: {field.description}{default}")
    lines.append("")


def shorten_signature(
    _app: Sphinx, _what: str, _name: str, obj: Any, _options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """Leave out the types of a signature where they are machinery, and all of it for a model: its fields are listed."""
    if isinstance(obj, type):
        return "", None
    if signature and "Annotated" in signature:
        parameters = inspect.signature(obj).parameters.values()
        plain = [each.replace(annotation=each.empty) for each in parameters]
        return str(inspect.Signature(plain)).replace("=MISSING", ""), returns
    return signature, returns


def setup(app: Sphinx) -> None:
    show_flows_as_functions()
    app.connect("autodoc-process-docstring", list_fields)
    app.connect("autodoc-process-signature", shorten_signature)
