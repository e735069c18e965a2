"""Large pages under large tables: where pages have 4 kB, finding out where a random row lies costs as much as reading it."""

import ctypes
import sys

from torch import Tensor

HUGE = 1 << 21  # bytes of a large page of x86-64, and of arm64 whose small ones have 4 kB
LEAST = 1 << 24  # bytes; what is smaller is found through the processor's own list of pages
MADV_HUGEPAGE, MADV_COLLAPSE = 14, 25  # linux/mman.h; the second since Linux 6.1


def large_pages(table: Tensor) -> Tensor:
    """Ask Linux for large pages under a CPU tensor of 16 MB or more; returns the tensor, whose values stay.

    Memory that was not written yet gets them when it is, written memory now, moved one page after the other (about 1 s for 2 GB).
    A request: where the system has none, or is not Linux, or the memory is shared with other processes, nothing changes.
    """
    first, rows = table.data_ptr(), table.shape[0]
    last = first + ((rows - 1) * table.stride(0) + table[0].numel()) * table.element_size() if rows else first
    first, last = -(-first // HUGE) * HUGE, last // HUGE * HUGE
    if last - first < LEAST or table.device.type != "cpu" or table.is_shared() or sys.platform != "linux":
        return table
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for advice in (MADV_HUGEPAGE, MADV_COLLAPSE):
        madvise(first, last - first, advice)
    return table
