"""Import strings, `package.module:name`, which name a Pydantic model or a tool."""

from __future__ import annotations

import importlib
import re
from typing import Any, Final

from pollux_flows.address import redact_text
from pollux_flows.errors import ConfigurationError

IMPORT_STRING: Final = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
INSTALL_HINT: Final = "Write package.module:name, and install the package where the flow runs."


def import_named(name: str, what: str) -> Any:
    """Return the object with this import string. Raises a ConfigurationError about `what` if it cannot be imported."""
    module, _, path = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for step in path.split("."):
            found = getattr(found, step)
    except (Exception, SystemExit) as error:  # noqa: BLE001 (a module may do anything when it is imported)
        problem = f"{type(error).__name__}: {redact_text(str(error))}"
    else:
        return found
    raise ConfigurationError(f"{what} {name!r} cannot be imported here: {problem}.", hint=INSTALL_HINT)
