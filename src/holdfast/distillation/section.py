"""One part of a config."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

__all__ = ["Section"]


class Section(BaseModel):
    """Settings that belong together; a key that it does not know is an error.

    The whole config, defaults included, is the identity of a run. A key added in a later version is therefore
    left out of the dump while it is at its default (`Field(exclude_if=…)`), so that runs in progress stay themselves.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=(), use_attribute_docstrings=True
    )
