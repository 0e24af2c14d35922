"""Re-export :mod:`flowhooks.distributed` under its name in earlier releases."""

from flowhooks.distributed import all_reduce, average_gradients, device, rank, running, world_size  # noqa: F401
