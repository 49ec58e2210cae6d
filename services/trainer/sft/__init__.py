"""The supervised phase before GRPO: traces and training on them."""
