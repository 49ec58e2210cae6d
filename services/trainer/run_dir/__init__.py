"""What a run keeps on the disk: record, checkpoints, wanted state, size."""
