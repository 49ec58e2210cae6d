"""What bodies of vLLM's routes may hold, looked at before vLLM reads them in the event loop."""
