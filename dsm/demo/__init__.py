"""The main job on real input: a noisy photograph in shared memory, denoised by processes on several nodes.

``solver`` is the job; it knows nothing of dsm. ``worker`` is one of the processes, ``photograph`` their input;
``ownership``, ``pictures`` and ``report`` show what happened.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Final, NoReturn

from dsm import launch
from dsm.errors import InvalidArgument

ITERATIONS: Final = 100
"""Where the picture is closest to the one without noise."""


def main(output: Path, iterations: int = ITERATIONS, processes: int = 4, nodes: int = 2) -> NoReturn:
    """Become ``dsm run ... python -m dsm.demo.worker``: solve, compare, and write the pictures to ``output``.

    This process is replaced, so that signals and the exit code are those of ``dsm run``: 0 if the result is the same,
    bit for bit, as that of one process on private memory. Raises :class:`InvalidArgument` if the demo cannot run.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise InvalidArgument("the demo needs matplotlib for its photograph and pictures: pip install 'dsm[demo]'")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidArgument(f"the pictures cannot be written to {output}: {error.strerror}") from error
    run, environment = launch.program("dsm")
    worker = [sys.executable, "-P", "-m", "dsm.demo.worker", str(output), str(iterations)]
    command = [*run, "run", "--nodes", str(nodes), "--procs", str(processes), "--", *worker]
    sys.stdout.flush()
    os.execve(command[0], command, environment)
