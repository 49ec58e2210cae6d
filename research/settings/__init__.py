"""Every setting, typed, one module per group of sections; units stand in the description of a field.

`research.config` reads presets, the environment and the command line into `Settings`. `research config --describe`
and docs/settings.md print what stands here.
"""

from research.settings.episode import EpisodeConfig
from research.settings.tree import Settings

__all__ = ["EpisodeConfig", "Settings"]
