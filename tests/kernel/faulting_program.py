"""An application for the kernel tests: maps a memfd, hands over its userfaultfd, then touches what it is told to.

    python faulting_program.py CONNECTION MEMFD DEVICE PAGES USER     (descriptors inherited; USER 0: stay who you are)

One packet is one command, one packet its answer. Whatever happens, the process is gone after LIFETIME_S.
"""

from __future__ import annotations

import mmap
import os
import resource
import signal
import socket
import struct
import sys
import threading

from dsm import memory
from dsm.constants import PAGE_BYTES
from dsm.errors import UserfaultfdUnavailable
from dsm.uffd import Userfaultfd

LIFETIME_S = 30


class Application:
    def __init__(self, connection: socket.socket, memfd: int, device: int, pages: int) -> None:
        self.connection = connection
        self.memfd = memfd
        self.device = device
        self.length = pages * PAGE_BYTES
        self.mapping = memory.map_shared(memfd, self.length)
        self.address = memory.address_of(self.mapping)
        self.uffd = self._register()

    def _register(self) -> Userfaultfd:
        uffd = Userfaultfd.create(self.device)
        uffd.register(self.address, self.length)
        socket.send_fds(self.connection, [struct.pack("<Q", self.address)], [uffd.fileno()])
        return uffd

    def obey(self) -> None:
        while words := self.connection.recv(64).decode().split():
            answer = getattr(self, words[0])(*map(int, words[1:]))
            self.connection.send(str("ok" if answer is None else answer).encode())

    def _page(self, page: int) -> memoryview:
        return memoryview(self.mapping)[page * PAGE_BYTES : (page + 1) * PAGE_BYTES]

    def read(self, page: int) -> int:
        return self.mapping[page * PAGE_BYTES]

    def write(self, page: int, value: int) -> None:
        self.mapping[page * PAGE_BYTES] = value

    def read_run(self, start: int, count: int) -> str:
        return ",".join(str(self.read(page)) for page in range(start, start + count))

    def system_call(self, page: int, value: int) -> None:
        """The kernel itself stores to the page, on behalf of read(2)."""
        ours, theirs = os.pipe()
        os.write(theirs, bytes([value]))
        os.readv(ours, [self._page(page)[:1]])

    def threads(self, count: int) -> None:
        """As many threads wait for as many pages: in a system call, which does not hold the interpreter's lock."""
        waiting = [threading.Thread(target=self.system_call, args=(page, 1)) for page in range(count)]
        for thread in waiting:
            thread.start()
        for thread in waiting:
            thread.join()

    def count(self, page: int) -> str:
        """Adds one to the first word of the page, again and again, until told to stop: how often, and the word."""
        word, stores = self._page(page)[:8].cast("Q"), 0
        while True:
            word[0] += 1
            stores += 1
            try:
                self.connection.recv(64, socket.MSG_DONTWAIT)
            except BlockingIOError:
                continue
            return f"{stores} {word[0]}"

    def fork(self, page: int) -> int:
        """A child touches the memory that it did not inherit: how it ended."""
        pid = os.fork()
        if pid == 0:
            os._exit(self.mapping[page * PAGE_BYTES])
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def fork_and_attach(self, page: int) -> int:
        """A child maps the memory again, at the same address, and touches it: the byte it read."""
        pid = os.fork()
        if pid == 0:
            memory.map_fixed(self.memfd, self.length, self.address)
            self._register()
            os._exit(self.mapping[page * PAGE_BYTES])
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def close(self) -> None:
        self.uffd.close()

    def unmap(self) -> None:
        self.mapping.close()


def become(user: int) -> None:
    """Leave root; then the system call must be refused, or the test would prove nothing."""
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)
    try:
        Userfaultfd.create(None)
    except UserfaultfdUnavailable:
        return
    raise SystemExit("this user may make userfaultfds by the system call")


def main() -> None:
    connection, memfd, device, pages, user = map(int, sys.argv[1:])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if user:
        become(user)
    signal.alarm(LIFETIME_S)  # its default action kills, also a process that waits in a page fault
    memory.die_with_parent(signal.SIGKILL)
    Application(socket.socket(fileno=connection), memfd, device, pages).obey()


assert mmap.PAGESIZE == PAGE_BYTES
main()
