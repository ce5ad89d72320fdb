"""What the figures were measured on: without it no figure means anything."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Final

from dsm import doctor

_TREE: Final = Path(__file__).resolve().parent.parent
_PACKAGES: Final = ("numpy", "pyzmq", "msgpack", "matplotlib", "redis", "ray", "mpi4py")


def facts() -> dict[str, str]:
    """In the order in which they are printed."""
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": _field("/proc/cpuinfo", "model name") or platform.machine(),
        "cores": _cores(),
        "memory": _memory(),
        "kernel": platform.release(),
        "load when it began": f"{os.getloadavg()[0]:.2f}",
        "Python": f"{platform.python_version()} ({platform.python_compiler()})",
        "dsm": _dsm(),
    } | {name: version for name in _PACKAGES if (version := _version(name))}


def _field(file: str, name: str) -> str:
    try:
        found = re.search(rf"^{name}\s*:\s*(.*)$", Path(file).read_text(), re.MULTILINE)
    except OSError:
        return ""
    return found[1] if found else ""


def _cores() -> str:
    here, all_ = len(os.sched_getaffinity(0)), os.cpu_count()
    virtual = ", virtual" if "hypervisor" in _field("/proc/cpuinfo", "flags").split() else ""
    return f"{here}{virtual}" if here == all_ else f"{here} of {all_}{virtual}"


def _memory() -> str:
    kilobytes = _field("/proc/meminfo", "MemTotal").split()
    return f"{int(kilobytes[0]) / (1 << 20):.1f} GiB" if kilobytes else "unknown"


def _dsm() -> str:
    """Release, commit where there is one, and whether its fault path is compiled."""
    compiled = "compiled" if doctor.is_compiled() else "interpreted"
    return ", ".join(filter(None, [_version("dsm"), _commit(), compiled]))


def _commit() -> str:
    try:
        asked = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=_TREE, capture_output=True, text=True)
    except OSError:
        return ""
    return f"commit {asked.stdout.strip()}" if asked.returncode == 0 else ""


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
