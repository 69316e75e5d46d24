"""How much memory this process uses, and how much it may use."""

import os
import resource
import sys
from pathlib import Path


def memory(field: str) -> int:
    """Bytes of a field of this process's status (Linux), or its peak so far elsewhere."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    lines = (line.split() for line in status.read_text(encoding="utf-8").splitlines())
    return next(1024 * int(parts[1]) for parts in lines if parts[0] == f"{field}:")


def forget_peak() -> None:
    """Start counting the peak of memory anew, where the system can."""
    switch = Path("/proc/self/clear_refs")
    if switch.exists():
        switch.write_text("5", encoding="utf-8")


def limit_memory(share: float) -> None:
    """Let this process and those that it starts ask for no more than a share of the machine's memory.

    A package that wants more then fails with its own message; otherwise the system might end any process.
    """
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (int(share * machine), hard))
