"""What processes have in memory, in megabytes of a million bytes; imports nothing that would itself take some."""

from pathlib import Path


def resident_megabytes(pid: int) -> float:
    """What a process has in memory now."""
    return _megabytes(pid, "VmRSS")


def peak_megabytes(pid: int | None = None) -> float:
    """The most that a process, or else this one, has had in memory."""
    return _megabytes(pid, "VmHWM")


def _megabytes(pid: int | None, name: str) -> float:
    """An entry of the status of a process, which has it in units of 1024 bytes."""
    status = Path(f"/proc/{pid or 'self'}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith(f"{name}:")]
    return int(line.split()[1]) * 1024 / 1e6
