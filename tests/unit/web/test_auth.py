"""Secrets come from the environment or from files, and what is no secret is refused with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from research.errors import ConfigurationError
from services.web.auth import ADMIN_TOKEN_VARIABLE, API_KEY_VARIABLE, environment_secret

SECRET = "0123456789ab"
MILVUS = "MILVUS_TOKEN"


@pytest.fixture(autouse=True)
def nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in (ADMIN_TOKEN_VARIABLE, API_KEY_VARIABLE, MILVUS):
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(f"{variable}_FILE", raising=False)


@pytest.mark.parametrize("variable", [ADMIN_TOKEN_VARIABLE, API_KEY_VARIABLE, MILVUS])
def test_a_secret_may_be_in_a_file(variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert environment_secret(variable) is None
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    monkeypatch.setenv(f"{variable}_FILE", str(tmp_path / "secret"))
    assert environment_secret(variable) == SECRET
    # As compose passes a file that the user has not named.
    monkeypatch.setenv(f"{variable}_FILE", "")
    assert environment_secret(variable) is None
    monkeypatch.setenv(variable, f" {SECRET} ")
    assert environment_secret(variable) == SECRET


def test_a_secret_of_ours_has_a_least_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ADMIN_TOKEN_VARIABLE, SECRET[:-1])
    with pytest.raises(ConfigurationError, match=rf"^{ADMIN_TOKEN_VARIABLE} is shorter than 12 .*openssl rand"):
        environment_secret(ADMIN_TOKEN_VARIABLE)
    file = tmp_path / "key"
    file.write_text(SECRET[:-1])
    monkeypatch.setenv(f"{API_KEY_VARIABLE}_FILE", str(file))
    with pytest.raises(ConfigurationError, match=rf"^{file} \({API_KEY_VARIABLE}_FILE\) is shorter"):
        environment_secret(API_KEY_VARIABLE)
    # Another service decides how long its own are.
    monkeypatch.setenv(MILVUS, "root:M")
    assert environment_secret(MILVUS) == "root:M"


def test_a_file_without_a_secret_does_not_open_the_door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "key"
    monkeypatch.setenv(f"{API_KEY_VARIABLE}_FILE", str(file))
    with pytest.raises(ConfigurationError, match=r"cannot be read as a secret: .*No such file"):
        environment_secret(API_KEY_VARIABLE)
    file.write_text("\n")
    with pytest.raises(ConfigurationError, match="is blank"):
        environment_secret(API_KEY_VARIABLE)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigurationError, match="cannot be read as a secret"):
        environment_secret(API_KEY_VARIABLE)


def test_two_places_are_one_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text(SECRET)
    monkeypatch.setenv(ADMIN_TOKEN_VARIABLE, SECRET)
    monkeypatch.setenv(f"{ADMIN_TOKEN_VARIABLE}_FILE", str(tmp_path / "token"))
    with pytest.raises(ConfigurationError, match="are both set"):
        environment_secret(ADMIN_TOKEN_VARIABLE)
