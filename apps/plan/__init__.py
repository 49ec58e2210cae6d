"""What a training run will take of memory, time, disk and money, before anything is rented."""
