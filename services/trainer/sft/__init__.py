"""The supervised format phase before GRPO: traces and training on them."""
