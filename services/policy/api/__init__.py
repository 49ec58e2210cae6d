"""Routes of the policy besides OpenAI's: `/answer`, administration, training, the ask page."""
