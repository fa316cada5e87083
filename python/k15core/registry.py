"""Makes a thing of a named kind: what tasks/ and rewards/ share.

A kind's class is imported when it is first asked for, so that a kind with heavy requirements costs
nothing to those who do not use it.
"""

from __future__ import annotations

import importlib
import inspect
from typing import TYPE_CHECKING, Any

from k15core.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def make(what: str, table: Mapping[str, str], kind: str, settings: Mapping[str, object]) -> Any:
    """An instance of `table[kind]`, written "module:Class", made with the keyword `settings`.

    Raises InvalidInputError for a kind or a setting that does not exist, and for a required one
    that is missing; `what` names the thing in the message.
    """
    cls = resolve(what, table, kind)
    parameters = inspect.signature(cls).parameters
    for setting in settings:
        if setting not in parameters:
            known = ", ".join(parameters) or "none"
            raise InvalidInputError(f"{what} {kind!r} has no setting {setting!r}: it has {known}")
    for setting, parameter in parameters.items():
        if parameter.default is parameter.empty and setting not in settings:
            raise InvalidInputError(f"{what} {kind!r} needs the setting {setting!r}")
    return cls(**settings)


def resolve(what: str, table: Mapping[str, str], kind: str) -> Callable[..., Any]:
    """The class `table[kind]`, imported; InvalidInputError for a kind that does not exist."""
    if kind not in table:
        raise InvalidInputError(f"{what} kind is {kind!r}: expected one of {', '.join(table)}")
    module, name = table[kind].split(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return found
