"""Sends new weights to the policy servers: by file or NCCL, to one or many."""
