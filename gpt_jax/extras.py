"""Packages that only some users need: imported where they are used, and asked for by name when they are missing."""

import importlib
from types import ModuleType

from gpt_jax.errors import UserError


def require(module: str, extra: str) -> ModuleType:
    """The imported `module`, which `pip install -e ".[extra]"` brings. UserError: it is not installed."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        # A package that is there but lacks something of its own is a broken installation, not a missing extra.
        if error.name is None or (error.name != module and not module.startswith(error.name + ".")):
            raise
        raise UserError(
            f"This needs the Python package {error.name!r}, which is not installed. Install it in the checkout of "
            f'gpt_jax: pip install -e ".[{extra}]" (without one, where gpt_jax is installed: '
            f'pip install "gpt_jax[{extra}]").'
        ) from None
