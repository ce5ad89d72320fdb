"""The kernel facts that dsm stands on, each through `dsm.uffd` and `dsm.memory`, with the exact faults it costs.

This process plays the node agent; the applications are processes of their own. It never touches a registered page.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faulting import ALL, PAGES, Application, extract, filled, pages_present

from dsm import memory, uffd
from dsm.constants import PAGE_BYTES
from dsm.errors import InvalidArgument, UserfaultfdUnavailable
from dsm.uffd import FLAG_WP, FLAG_WRITE, Outcome, Userfaultfd

READ = 0  # flags of a load from an absent page
NOBODY = 65534

Start = Callable[..., Application]


@pytest.fixture(scope="session")
def device() -> Iterator[int]:
    fd = uffd.open_device()
    if fd is None:
        pytest.skip(f"{uffd.DEVICE} may not be opened here: `dsm doctor` says how it could be")
    yield fd
    os.close(fd)


@pytest.fixture
def memfd() -> Iterator[int]:
    fd = memory.create_memfd("dsm:test", ALL)
    yield fd
    os.close(fd)


@pytest.fixture
def start(device: int, memfd: int) -> Iterator[Start]:
    """Starts an application whose range carries markers. At the end all are killed, and every fault was looked at."""
    started: list[Application] = []

    def one(user: int = 0) -> Application:
        application = Application(memfd, device, user)
        started.append(application)
        application.protect()
        return application

    yield one
    unread = [application.unread_faults() for application in started]
    for application in started:
        application.end()
    assert not any(unread), f"faults that the test did not expect: {unread}"


@pytest.fixture
def app(start: Start) -> Application:
    return start()


@pytest.fixture
def other(start: Start) -> Application:
    return start()


# -- absent pages ----------------------------------------------------------------------------------------------


def test_markers_allocate_no_page(app: Application, memfd: int) -> None:
    app.protect()  # a second time, too
    assert pages_present(memfd) == []


def test_a_load_from_an_absent_page_has_no_flag_and_copy_resumes_it(app: Application, memfd: int) -> None:
    app.say("read 3")
    assert app.fault() == (READ, 3)
    assert app.copy(3, filled(7), protect=True) is Outcome.DONE
    assert app.answer() == "7"
    assert app.ask("read 3") == "7"
    assert pages_present(memfd) == [3]
    assert app.told == [(READ, 3)]


def test_a_store_to_an_absent_page_says_so_and_needs_one_fault_only(app: Application) -> None:
    app.say("write 3 9")
    assert app.fault() == (FLAG_WRITE, 3)
    assert app.copy(3, filled(7), protect=False) is Outcome.DONE
    assert app.answer() == "ok"
    assert app.ask("write 3 10") == "ok"
    assert app.ask("read 3") == "10"
    assert app.told == [(FLAG_WRITE, 3)]


def test_a_page_copied_in_protected_faults_at_its_first_store(app: Application) -> None:
    app.say("read 3")
    app.fault()
    app.copy(3, filled(7), protect=True)
    app.answer()
    app.say("write 3 9")
    assert app.fault() == (FLAG_WRITE | FLAG_WP, 3)
    app.unprotect(3)
    assert app.answer() == "ok"
    assert app.told == [(READ, 3), (FLAG_WRITE | FLAG_WP, 3)]


def test_one_copy_of_sixteen_pages_serves_sixteen_loads_with_one_fault(app: Application, memfd: int) -> None:
    values = range(100, 116)
    app.say("read_run 8 16")
    assert app.fault() == (READ, 8)
    assert app.copy(8, filled(*values), protect=True) is Outcome.DONE
    assert app.answer() == ",".join(map(str, values))
    assert pages_present(memfd) == list(range(8, 24))
    assert app.told == [(READ, 8)]


def test_a_load_of_never_armed_pages_faults_just_the_same(app: Application) -> None:
    app.unprotect(3)  # the marker is gone; the range is still registered
    app.say("read 3")
    assert app.fault() == (READ, 3)
    app.copy(3, filled(7), protect=True)
    assert app.answer() == "7"


def test_the_kernel_itself_faults_for_a_system_call(app: Application, memfd: int) -> None:
    app.say("system_call 3 9")
    assert app.fault() == (FLAG_WRITE, 3)
    app.copy(3, filled(7), protect=False)
    assert app.answer() == "ok"
    assert os.pread(memfd, 2, 3 * PAGE_BYTES) == b"\x09\x07"
    assert app.told == [(FLAG_WRITE, 3)]


def test_reading_a_hole_through_the_descriptor_gives_zeros_and_allocates_nothing(app: Application, memfd: int) -> None:
    assert os.pread(memfd, 4 * PAGE_BYTES, 0) == bytes(4 * PAGE_BYTES)
    assert pages_present(memfd) == []


# -- several processes -----------------------------------------------------------------------------------------


def test_a_second_process_reads_a_present_page_without_a_fault(app: Application, other: Application) -> None:
    app.say("read 3")
    app.fault()
    app.copy(3, filled(7), protect=True)
    app.answer()
    assert other.ask("read 3") == "7"
    assert (app.told, other.told) == ([(READ, 3)], [])


def test_a_marker_makes_the_first_store_a_fault_and_lifting_it_resumes(app: Application, other: Application) -> None:
    app.say("write 3 8")
    app.fault()
    app.copy(3, filled(7), protect=False)
    app.answer()
    other.say("write 3 9")  # never touched here: only the marker stands in its way
    assert other.fault() == (FLAG_WRITE | FLAG_WP, 3)
    assert other.silent()
    other.unprotect(3)
    assert other.answer() == "ok"
    assert app.ask("read 3") == "9"
    assert (app.told, other.told) == ([(FLAG_WRITE, 3)], [(FLAG_WRITE | FLAG_WP, 3)])


def test_protection_is_lifted_in_one_process_only(app: Application, other: Application) -> None:
    app.say("read 3")
    app.fault()
    app.copy(3, filled(7), protect=True)
    app.answer()
    other.unprotect(3)
    assert other.ask("write 3 9") == "ok"
    app.say("write 3 10")
    assert app.fault() == (FLAG_WRITE | FLAG_WP, 3)
    app.unprotect(3)
    app.answer()
    assert other.told == []


def test_each_process_that_waits_for_a_page_needs_its_own_wake(app: Application, other: Application) -> None:
    for waiter in (app, other):
        waiter.say("read 5")
        assert waiter.fault() == (READ, 5)
    app.copy(5, filled(7), protect=True)
    assert app.answer() == "7"
    assert other.silent()
    other.wake(5)
    assert other.answer() == "7"
    assert (app.told, other.told) == ([(READ, 5)], [(READ, 5)])


def test_writing_the_memfd_and_waking_fills_a_page_for_all_alike(
    app: Application, other: Application, memfd: int
) -> None:
    for waiter in (app, other):
        waiter.say("read 6")
        waiter.fault()
    os.pwrite(memfd, b"\x07" * PAGE_BYTES, 6 * PAGE_BYTES)
    for waiter in (app, other):
        waiter.wake(6)
        assert waiter.answer() == "7"
    app.say("write 6 9")
    assert app.fault() == (FLAG_WRITE | FLAG_WP, 6), "the marker holds also where nobody ever copied"
    app.unprotect(6)
    app.answer()
    assert (app.told, other.told) == ([(READ, 6), (FLAG_WRITE | FLAG_WP, 6)], [(READ, 6)])


def test_a_copy_of_a_page_that_is_there_is_present_and_wakes(app: Application, other: Application) -> None:
    for waiter in (app, other):
        waiter.say("read 5")
        waiter.fault()
    app.copy(5, filled(7), protect=True)
    assert other.copy(5, filled(8), protect=True) is Outcome.PRESENT
    assert (app.answer(), other.answer()) == ("7", "7"), "what was there stays"
    assert (app.told, other.told) == ([(READ, 5)], [(READ, 5)])


def test_a_copy_fills_around_the_pages_that_are_there(app: Application, memfd: int) -> None:
    for page in (10, 11, 13):
        os.pwrite(memfd, b"\x01" * PAGE_BYTES, page * PAGE_BYTES)
    assert app.copy(10, filled(2, 3, 4, 5, 6), protect=True) is Outcome.PRESENT
    assert app.ask("read_run 10 5") == "1,1,4,1,6"
    assert app.told == []


# -- extraction ------------------------------------------------------------------------------------------------


def test_protect_read_punch_takes_a_page_out_of_every_process(app: Application, other: Application, memfd: int) -> None:
    app.say("write 3 9")
    app.fault()
    app.copy(3, filled(7), protect=False)
    app.answer()
    other.ask("read 3")
    data = extract(3, memfd, [app, other])
    assert data == b"\x09" + b"\x07" * (PAGE_BYTES - 1)
    assert pages_present(memfd) == []
    for reader in (app, other):
        reader.say("read 3")
        assert reader.fault() == (READ, 3)
    os.pwrite(memfd, data, 3 * PAGE_BYTES)
    for reader in (app, other):
        reader.wake(3)
        assert reader.answer() == "9"


def test_markers_survive_the_hole(app: Application, other: Application, memfd: int) -> None:
    for page in (3, 4):
        app.say(f"read {page}")
        app.fault()
        app.copy(page, filled(7), protect=True)
        app.answer()
    extract(3, memfd, [app, other])
    app.say("write 3 1")
    assert app.fault() == (FLAG_WRITE, 3)
    app.copy(3, filled(7), protect=False)
    app.answer()
    other.say("write 3 2")
    assert other.fault() == (FLAG_WRITE | FLAG_WP, 3)
    other.unprotect(3)
    other.answer()


def test_a_downgrade_keeps_the_page_readable(app: Application, memfd: int) -> None:
    app.say("write 3 9")
    app.fault()
    app.copy(3, filled(7), protect=False)
    app.answer()
    app.protect(3, 1)
    assert os.pread(memfd, 1, 3 * PAGE_BYTES) == b"\x09"
    assert app.ask("read 3") == "9"
    app.say("write 3 10")
    assert app.fault() == (FLAG_WRITE | FLAG_WP, 3)
    app.unprotect(3)
    app.answer()


def test_no_store_is_lost_however_often_the_page_is_taken_away(app: Application, memfd: int) -> None:
    page = memory.Staging(PAGE_BYTES)
    app.say("count 0")
    for _ in range(300):
        app.fault()
        assert app.copy(0, page, protect=False) is Outcome.DONE
        time.sleep(0.0002)  # let it get on; how far does not matter
        page.buffer[:] = extract(0, memfd, [app])
    app.fault()
    app.copy(0, page, protect=False)
    stores, word = app.ask("stop").split()
    assert int(word) == int(stores) > 0
    assert len(app.told) == 301


# -- faults that are told --------------------------------------------------------------------------------------


def test_wake_without_a_page_tells_the_fault_again(app: Application) -> None:
    app.say("read 30")
    assert app.fault() == (READ, 30)
    assert app.silent()
    app.uffd.wake(app.base, ALL)
    assert app.fault() == (READ, 30)
    app.copy(30, filled(7), protect=True)
    assert app.answer() == "7"
    assert app.told == [(READ, 30), (READ, 30)]


def test_a_successor_with_a_duplicate_hears_of_faults_that_were_never_served(app: Application) -> None:
    app.say("read 30")
    assert app.fault() == (READ, 30)
    successor = Userfaultfd(os.dup(app.uffd.fileno()))
    app.uffd.close()
    app.uffd = successor
    app.uffd.wake(app.base, ALL)
    assert app.fault() == (READ, 30)
    app.copy(30, filled(7), protect=True)
    assert app.answer() == "7"


def test_one_call_returns_all_faults_however_many(app: Application, memfd: int) -> None:
    app.say(f"threads {PAGES}")
    app.waiting(PAGES)
    faults = app.unread_faults()
    assert sorted(faults) == [(FLAG_WRITE, page) for page in range(PAGES)]
    for page in range(PAGES):
        app.copy(page, filled(7), protect=False)
    assert app.answer() == "ok"
    assert len(pages_present(memfd)) == PAGES
    assert len(app.told) == PAGES


def test_without_faults_nothing_blocks(device: int) -> None:
    quiet = Userfaultfd.create(device)
    os.set_blocking(quiet.fileno(), True)
    received = Userfaultfd(os.dup(quiet.fileno()))  # as from another process, which may have done that
    assert received.faults() == []
    quiet.close()
    received.close()


# -- no wrong value ---------------------------------------------------------------------------------------------


def test_an_application_whose_agent_is_gone_blocks(app: Application) -> None:
    app.uffd.close()
    app.say("read 31")
    assert app.silent()


def test_without_any_descriptor_it_would_read_zeros(app: Application, memfd: int) -> None:
    """Why an application keeps its own open: this is what must never happen."""
    app.uffd.close()
    assert app.ask("close") == "ok"
    assert app.ask("read 31") == "0"
    assert pages_present(memfd) == [31]


def test_a_forked_child_that_did_not_attach_dies_instead_of_reading_zeros(app: Application, memfd: int) -> None:
    assert app.ask("fork 3") == str(-signal.SIGSEGV)
    assert pages_present(memfd) == []
    assert app.told == []


def test_a_forked_child_attaches_at_the_same_address(app: Application) -> None:
    app.say("write 3 9")
    app.fault()
    app.copy(3, filled(7), protect=False)
    app.answer()
    base = app.base
    app.say("fork_and_attach 4")
    child = app.receive_userfaultfd()
    assert app.base == base
    parent, app.uffd = app.uffd, child
    assert app.fault() == (READ, 4), "it comes to the child's own descriptor"
    assert app.copy(4, filled(8), protect=True) is Outcome.DONE
    assert app.answer() == "8"
    app.uffd = parent
    assert app.uffd.faults() == []
    assert child.copy(app.at(5), filled(7).address, PAGE_BYTES, True) is Outcome.GONE
    child.close()


def test_a_marker_stands_in_the_way_of_poison(app: Application) -> None:
    assert app.uffd._poison_page(app.at(9)) is Outcome.PRESENT
    assert app.uffd.poison(app.at(9), PAGE_BYTES) is Outcome.DONE


@pytest.mark.parametrize("touch", ["read 9", "write 9 1"])
def test_touching_a_poisoned_page_is_a_bus_error(app: Application, memfd: int, touch: str) -> None:
    assert app.uffd.poison(app.at(8), 2 * PAGE_BYTES) is Outcome.DONE
    app.say(touch)
    assert app.exit_code() == -signal.SIGBUS
    assert pages_present(memfd) == []
    assert app.told == []


def test_poison_reaches_the_thread_that_waits(app: Application) -> None:
    app.say("read 9")
    assert app.fault() == (READ, 9)
    assert app.uffd.poison(app.at(9), PAGE_BYTES) is Outcome.DONE
    assert app.exit_code() == -signal.SIGBUS
    assert app.told == [(READ, 9)]


def test_writing_one_page_brings_in_that_page_alone() -> None:
    settings = Path("/sys/kernel/mm/transparent_hugepage").glob("**/shmem_enabled")
    if any(
        "[always]" in text or "[within_size]" in text or "[force]" in text for text in map(Path.read_text, settings)
    ):
        pytest.skip("this host fills shared memory with huge pages: `dsm doctor` says how to change that")
    assert memory.fills_single_pages()


# -- who is gone, and who may ------------------------------------------------------------------------------------


def test_a_process_that_has_exited_is_gone(app: Application) -> None:
    app.say("read 3")
    app.fault()
    app.process.kill()
    app.exit_code()
    assert app.copy(3, filled(7), protect=True) is Outcome.GONE
    assert app.copy(8, filled(*range(16)), protect=False) is Outcome.GONE
    assert app.uffd.protect(app.base, ALL) is Outcome.GONE
    assert app.uffd.unprotect(app.base, ALL) is Outcome.GONE
    assert app.uffd.poison(app.base, ALL) is Outcome.GONE
    assert app.uffd.wake(app.base, ALL) is Outcome.DONE, "there is nobody left to wake, and the kernel does not mind"
    assert app.uffd.faults() == []


def test_a_range_that_was_unmapped_is_gone(app: Application) -> None:
    assert app.ask("unmap") == "ok"
    assert app.copy(3, filled(7), protect=True) is Outcome.GONE
    assert app.uffd.protect(app.base, ALL) is Outcome.GONE
    assert app.uffd.unprotect(app.base, ALL) is Outcome.GONE
    assert app.uffd.poison(app.base, PAGE_BYTES) is Outcome.GONE


def test_an_address_that_is_no_page_is_a_mistake_and_raises(app: Application) -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        app.uffd.protect(app.base + 1, PAGE_BYTES)
    with pytest.raises(OSError, match="Invalid argument"):
        app.uffd.copy(app.base, filled(7).address, 1, True)


def test_an_unprivileged_process_needs_only_the_open_device(start: Start) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else to try it")
    if Path("/proc/sys/vm/unprivileged_userfaultfd").read_text().strip() != "0":
        pytest.skip("vm.unprivileged_userfaultfd is set: everybody may make userfaultfds here")
    app = start(NOBODY)
    app.say("system_call 3 9")  # faults in the kernel's own code included
    assert app.fault() == (FLAG_WRITE, 3)
    app.copy(3, filled(7), protect=False)
    assert app.answer() == "ok"
    assert app.told == [(FLAG_WRITE, 3)]


def test_what_is_needed_is_offered(device: int) -> None:
    assert uffd.probe(device) >= uffd.NEEDED


def test_a_missing_feature_is_named(device: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uffd, "FEATURE_NAMES", (*uffd.FEATURE_NAMES, *[""] * 30, "TELEPATHY"))
    monkeypatch.setattr(uffd, "NEEDED", uffd.NEEDED | {"TELEPATHY"})
    with pytest.raises(UserfaultfdUnavailable, match=r"\(TELEPATHY\).*6\.8 or newer"):
        Userfaultfd.create(device)


def test_a_descriptor_of_something_else_is_refused_and_left_open() -> None:
    ours, theirs = os.pipe()
    with pytest.raises(InvalidArgument, match="no userfaultfd"):
        Userfaultfd(ours)
    with pytest.raises(UserfaultfdUnavailable, match="dsm doctor"):
        Userfaultfd.create(ours)
    os.close(ours)
    os.close(theirs)


def test_closing_twice_closes_nothing_else(device: int) -> None:
    one = Userfaultfd.create(device)
    number = one.fileno()
    one.close()
    reused = os.dup(device)
    assert reused == number
    one.close()
    os.fstat(reused)
    os.close(reused)
