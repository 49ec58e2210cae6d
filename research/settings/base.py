"""What the sections of the settings share: frozen, unknown keys refused; and types of more than one section."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
Name = Annotated[str, Field(pattern=NAME)]
LAST_PORT = 65535
Port = Annotated[int, Field(ge=1, le=LAST_PORT)]
PositiveInt = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
# One number for every kind of question, or a number per kind.
Counts = Annotated[int, Field(ge=0)] | dict[str, Annotated[int, Field(ge=0)]]


class Section(BaseModel):
    """Base of every section."""

    model_config = ConfigDict(extra="forbid", frozen=True)
