"""LoRA adapters, loaded and unloaded while vLLM serves."""
