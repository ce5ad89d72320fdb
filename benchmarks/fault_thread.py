"""The floor of a local fault, in C (fault_thread.c), compiled on the spot where there is a compiler."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

_SOURCE: Final = Path(__file__).with_name("fault_thread.c")
AT_ONCE_MAX: Final = 1024
"""Faults that can be asked for at once: the pages of the program."""


class NoFaultThread(Exception):
    """There is none here; the text says what to do."""


class FaultThread:
    """A process in which one thread faults and another serves it. Raises :class:`NoFaultThread`."""

    def __init__(self) -> None:
        compiler = shutil.which("cc")
        if compiler is None:
            raise NoFaultThread("needs a C compiler: apt-get install gcc libc6-dev")
        with tempfile.TemporaryDirectory() as folder:
            program = Path(folder, "fault_thread")
            command = [compiler, "-O2", "-pthread", "-o", str(program), str(_SOURCE)]
            made = subprocess.run(command, capture_output=True, text=True)
            if made.returncode != 0:
                raise NoFaultThread(f"cc could not compile it (apt-get install libc6-dev): {made.stderr.strip()[:300]}")
            pipe = subprocess.PIPE
            self._process = subprocess.Popen([program], stdin=pipe, stdout=pipe, stderr=pipe, text=True)
            try:
                self.faults(1)  # it runs: its file may go
            except BaseException:
                self.close()
                raise

    def faults(self, count: int) -> list[int]:
        """Nanoseconds of each of ``count`` stores to absent pages."""
        process = self._process
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        assert count <= AT_ONCE_MAX
        try:
            process.stdin.write(f"{count}\n")
            process.stdin.flush()
        except BrokenPipeError:
            pass  # it has said why
        if line := process.stdout.readline():
            return [int(took) for took in line.split()]
        raise NoFaultThread(f"`dsm doctor` says what userfaultfd needs here: {process.stderr.read().strip()}")

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert pipe is not None
            pipe.close()
