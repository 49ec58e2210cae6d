"""What the sections of the settings share: frozen, unknown keys refused; and types of more than one section."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
Name = Annotated[str, Field(pattern=NAME)]
LAST_PORT = 65535
Port = Annotated[int, Field(ge=1, le=LAST_PORT)]
PositiveInt = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
# One number for every kind of question, or a number per kind.
Counts = Annotated[int, Field(ge=0)] | dict[str, Annotated[int, Field(ge=0)]]


class SecretValueError(ValueError):
    """A setting holds a secret, which the message about it must not show."""


def without_credentials(instead: str) -> AfterValidator:
    """Refuses an address with a user name or password; `instead` is the variable that holds the secret."""

    def check(address: str) -> str:
        # A file of Milvus Lite may have any name.
        if "@" in address and ("://" in address or not address.endswith(".db")):
            raise SecretValueError(
                "the address holds a user name or password, which logs and the record of a run would show; leave it "
                f"out, and give the secret in the environment as {instead}"
            )
        return address

    return AfterValidator(check)


def address_of(host: str, port: int) -> str:
    """Where a service that listens on `host` is reached from this machine."""
    own = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{own}]:{port}" if ":" in own else f"http://{own}:{port}"


class Section(BaseModel):
    """Base of every section."""

    # Other processes of a run read the settings as JSON, where infinity (no limit) would become null.
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")
