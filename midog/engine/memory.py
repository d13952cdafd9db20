"""How networks on a CPU take memory."""

import ctypes

TRIM_THRESHOLD, MMAP_MAX = -1, -4  # of malloc.h
NEVER = -1


def keep_memory() -> None:
    """Keep what was freed for what comes next, where the C library is GNU's; else nothing.

    Every forward takes large blocks and frees them. Given back to the system, each has to be cleared page by page when
    it is next taken, which is a third of a training step or of a forward.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(MMAP_MAX, 0)
    mallopt(TRIM_THRESHOLD, NEVER)
