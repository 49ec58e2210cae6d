"""Takes new weights to the policies: files or NCCL, one server or many."""
