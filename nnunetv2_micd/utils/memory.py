"""Main memory of this process."""

import sys


def peak_memory() -> int:
    """Return the largest resident size of this process in bytes, without its workers; 0 on Windows."""
    try:
        import resource  # absent on Windows
    except ImportError:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
