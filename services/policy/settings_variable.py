"""How the settings reach vLLM's processes: as JSON in the environment."""

from __future__ import annotations

import os

from research.settings import Settings

SETTINGS_VARIABLE = "RESEARCH_POLICY_SETTINGS"
# The chosen number format and the reason, in one line.
NUMBERS_VARIABLE = "RESEARCH_POLICY_NUMBER_FORMAT"


def settings_from_environment() -> Settings:
    """The settings that this server was started with."""
    return Settings.model_validate_json(os.environ[SETTINGS_VARIABLE])
