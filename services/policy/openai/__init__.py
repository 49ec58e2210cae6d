"""The search agent as a model of OpenAI's chat endpoint."""
