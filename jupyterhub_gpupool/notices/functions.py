"""Functions of the admin's that another process is to call: by the name under which it can import them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from operator import attrgetter
from typing import Any


def named(name: str) -> Callable[..., Any]:
    """The function with a name such as ``module:function``.  Raises ValueError with what is wrong with it."""
    module, colon, below = name.partition(":")
    if not colon or not module or not below:
        raise ValueError(f"{name!a:.80} is not of the form 'module:function'")
    try:
        found = attrgetter(below)(importlib.import_module(module))
    except (ImportError, AttributeError, ValueError) as problem:
        raise ValueError(f"{name!a:.80} cannot be imported ({problem})") from None
    if not callable(found):
        raise ValueError(f"{name!a:.80} is no function")
    return found  # type: ignore[no-any-return]


def name_of(function: Callable[..., Any]) -> str:
    """The name of a function, for :func:`named` in another process.

    Raises ValueError for one without: a lambda, or a function of the configuration file itself.
    """
    name = f"{getattr(function, '__module__', '')}:{getattr(function, '__qualname__', '')}"
    try:
        same = named(name) is function
    except ValueError:
        same = False
    if not same:
        raise ValueError("write it into a module of its own, and import it from there")
    return name


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that has a name.  Raises ValueError for one without."""
    name_of(function)
    return function
