"""Routes of the policy beside `/answer` and OpenAI's: health, administration, the ask page."""
