"""`dsm.memory`: memory files, mappings, holes, the timer, and ending with the parent. No userfaultfd here."""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import dsm
from dsm import memory
from dsm.constants import FRAME_BYTES, PAGE_BYTES
from dsm.errors import RegionTooLarge

PATIENCE_S = 20.0
LENGTH = 16 * PAGE_BYTES
TIB = 1 << 40


@pytest.fixture
def memfd() -> Iterator[int]:
    fd = memory.create_memfd("dsm:test", LENGTH)
    yield fd
    os.close(fd)


def run(code: str) -> subprocess.Popen[bytes]:
    """A Python process of its own, with `dsm` to import."""
    environment = {**os.environ, "PYTHONPATH": str(Path(dsm.__file__).parent.parent)}
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment)


def flags_of(address: int) -> set[str]:
    """VmFlags of the mapping at an address (proc(5), smaps)."""
    smaps = Path("/proc/self/smaps").read_text()
    found = re.search(rf"^{address:08x}-.*?^VmFlags: (.*?)$", smaps, re.MULTILINE | re.DOTALL)
    assert found, f"nothing is mapped at {address:#x}"
    return set(found.group(1).split())


# -- memory files ----------------------------------------------------------------------------------------------


def test_a_memory_file_is_empty_named_closed_by_exec_and_of_fixed_length(memfd: int) -> None:
    assert os.fstat(memfd).st_size == LENGTH
    assert memory.present(memfd, LENGTH) == []
    assert os.readlink(f"/proc/self/fd/{memfd}").startswith("/memfd:dsm:test")
    assert not os.get_inheritable(memfd)
    for length in (LENGTH - PAGE_BYTES, LENGTH + PAGE_BYTES):
        with pytest.raises(PermissionError):
            os.ftruncate(memfd, length)


@pytest.mark.parametrize("name", ["x" * 255, "é" * 255, "a\0b", "\udc80"])
def test_any_name_of_a_region_will_do(name: str) -> None:
    os.close(memory.create_memfd(name, PAGE_BYTES))


@pytest.mark.parametrize("length", [-1, 1 << 63, 1 << 70])
def test_a_length_the_kernel_refuses_leaves_no_descriptor(length: int) -> None:
    before = os.listdir("/proc/self/fd")
    with pytest.raises(RegionTooLarge, match=str(length)):
        memory.create_memfd("x", length)
    assert os.listdir("/proc/self/fd") == before


def test_what_is_present_follows_writes_and_holes(memfd: int) -> None:
    for page in (0, 3, 4, 15):
        os.pwrite(memfd, b"x", page * PAGE_BYTES)
    assert memory.present(memfd, LENGTH) == [(0, 4096), (12288, 20480), (61440, 65536)]
    assert memory.present(memfd, 4 * PAGE_BYTES) == [(0, 4096), (12288, 16384)]
    assert memory.present(memfd, 2 * PAGE_BYTES) == [(0, 4096)]
    memory.punch_hole(memfd, 3 * PAGE_BYTES, PAGE_BYTES)
    assert memory.present(memfd, LENGTH) == [(0, 4096), (16384, 20480), (61440, 65536)]
    memory.punch_hole(memfd, 0, LENGTH)
    assert memory.present(memfd, LENGTH) == []
    assert os.fstat(memfd).st_size == LENGTH


def test_a_page_is_present_once_it_was_written(memfd: int) -> None:
    os.pwrite(memfd, b"x", 3 * PAGE_BYTES)
    assert [page for page in range(6) if memory.is_present(memfd, page * PAGE_BYTES)] == [3]


def test_a_hole_far_beyond_four_gigabytes_is_punched_where_it_was_asked_for() -> None:
    fd = memory.create_memfd("dsm:test", TIB)
    for at in (0, 5 << 32):
        os.pwrite(fd, b"x", at)
    memory.punch_hole(fd, 5 << 32, PAGE_BYTES)
    assert memory.present(fd, TIB) == [(0, PAGE_BYTES)]
    os.close(fd)


def test_a_hole_in_something_else_is_an_error() -> None:
    with pytest.raises(OSError, match="punching a hole: Bad file descriptor"):
        memory.punch_hole(-1, 0, PAGE_BYTES)


# -- mappings --------------------------------------------------------------------------------------------------


def test_a_mapping_is_shared_in_small_pages_and_not_inherited(memfd: int) -> None:
    with memory.map_shared(memfd, LENGTH) as mapping:
        mapping[PAGE_BYTES] = 7
        assert os.pread(memfd, 1, PAGE_BYTES) == b"\7"
        assert flags_of(memory.address_of(mapping)) >= {"sh", "nh", "dc"}


def test_what_does_not_fit_the_address_space_is_too_large() -> None:
    fd = memory.create_memfd("dsm:test", 1 << 47)
    with pytest.raises(RegionTooLarge, match=str(1 << 47)):
        memory.map_shared(fd, 1 << 47)
    os.close(fd)


def test_a_mapping_can_be_made_again_at_its_address_once_that_is_free(memfd: int) -> None:
    mapping = memory.map_shared(memfd, LENGTH)
    address = memory.address_of(mapping)
    with pytest.raises(FileExistsError):
        memory.map_fixed(memfd, LENGTH, address)
    mapping.close()
    os.pwrite(memfd, b"\7", 0)
    memory.map_fixed(memfd, LENGTH, address)
    assert ctypes.c_uint8.from_address(address).value == 7
    assert flags_of(address) >= {"sh", "nh", "dc"}
    memory.unmap(address, LENGTH)
    memory.map_fixed(memfd, LENGTH, address)
    memory.unmap(address, LENGTH)


def test_unmapping_what_cannot_be_is_an_error() -> None:
    with pytest.raises(OSError, match="unmapping"):
        memory.unmap(1, PAGE_BYTES)


def test_the_address_of_a_buffer_is_where_its_bytes_are() -> None:
    with mmap.mmap(-1, LENGTH) as mapping:
        ctypes.c_uint8.from_address(memory.address_of(mapping) + 5).value = 7
        assert mapping[5] == 7
        view = memoryview(mapping)
        assert memory.address_of(view[5:]) == memory.address_of(mapping) + 5
        view.release()
    data = bytearray(8)
    ctypes.c_uint8.from_address(memory.address_of(data)).value = 7
    assert data[0] == 7


def test_one_tebibyte_fits_and_half_the_machine_does_not() -> None:
    memory.check_address_space(TIB)
    for length in (1 << 47, 1 << 62, 1 << 70):
        with pytest.raises(RegionTooLarge, match="smaller"):
            memory.check_address_space(length)


def test_a_limit_on_address_space_counts() -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 32, 1 << 32))"
    check = "from dsm import memory; memory.check_address_space(1 << 20); print('small', flush=True)"
    with run(f"{limit}; {check}; memory.check_address_space(1 << 33)") as process:
        out = process.communicate(timeout=PATIENCE_S)[0]
    assert out == b"small\n"
    assert process.returncode == 1


def test_staging_is_aligned_zeroed_and_as_long_as_asked_for() -> None:
    for staging, length in ((memory.Staging(), FRAME_BYTES), (memory.Staging(3 * PAGE_BYTES), 3 * PAGE_BYTES)):
        assert staging.address % PAGE_BYTES == 0
        assert bytes(staging.buffer) == bytes(length)
        staging.buffer[length - 1] = 7
        assert ctypes.c_uint8.from_address(staging.address + length - 1).value == 7


# -- the timer -------------------------------------------------------------------------------------------------


@pytest.fixture
def timer() -> Iterator[memory.Timer]:
    one = memory.Timer()
    yield one
    one.close()


def due(timer: memory.Timer, patience_s: float) -> bool:
    return bool(select.select([timer], [], [], patience_s)[0])


def test_a_timer_is_not_due_before_it_is_set(timer: memory.Timer) -> None:
    assert not due(timer, 0)
    timer.clear()
    assert not due(timer, 0)


@pytest.mark.parametrize("delay", [-5, 0, 1, 1500])
def test_a_timer_becomes_due_and_stays_so_until_cleared(timer: memory.Timer, delay: int) -> None:
    timer.set_us(delay)
    assert due(timer, PATIENCE_S)
    assert due(timer, 0)
    timer.clear()
    assert not due(timer, 0)


@pytest.mark.parametrize("delay", [3_600_000_000, 1_000_000_000])
def test_a_later_setting_replaces_an_earlier_one(timer: memory.Timer, delay: int) -> None:
    timer.set_us(delay)
    assert not due(timer, 0)
    timer.set_us(10)
    assert due(timer, PATIENCE_S)
    timer.set_us(delay)
    assert not due(timer, 0), "setting it takes back what was due"


def test_closing_twice_closes_nothing_else() -> None:
    timer = memory.Timer()
    number = timer.fileno()
    timer.close()
    ours, theirs = os.pipe()
    assert ours == number
    timer.close()
    os.fstat(ours)
    os.close(ours)
    os.close(theirs)


# -- the parent ------------------------------------------------------------------------------------------------


def test_a_process_ends_with_its_parent() -> None:
    child = (
        "import signal, time; from dsm import memory; memory.die_with_parent(signal.SIGTERM);"
        "print('ready', flush=True); time.sleep(60)"
    )
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    with run(parent) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGKILL)
        readable = select.select([process.stdout], [], [], PATIENCE_S)[0]
        assert readable, "the child holds the pipe, so it is still there"
        assert process.stdout.read() == b""
