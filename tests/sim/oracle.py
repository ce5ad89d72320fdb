"""What must hold, at every access and in the end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dsm.constants import PAGE_BYTES

from . import inside
from .programs import WORD
from .world import SimulationError

if TYPE_CHECKING:
    from .cluster import SimulatedCluster
    from .host import Host
    from .programs import Region, Thread


Contents = dict[tuple[int, int], bytearray]
"""By region and kernel page."""
_ZEROS: Final = bytes(PAGE_BYTES)


class Oracle:
    """Knows every word that was stored, in the order of simulated time: the strictest order that memory can have."""

    def __init__(self, cluster: SimulatedCluster) -> None:
        self._cluster = cluster
        self._latest: dict[tuple[int, int], int] = {}  # by region and word
        self._sizes: dict[int, int] = {}  # bytes of a page, by region
        self._may_be_lost: set[tuple[int, int]] = set()  # region and page
        # Of regions with replicas, by word: what was stored since the last release that is over, that included; and of
        # pages whose writer is lost the values that may be there, until somebody has looked.
        self._since: dict[tuple[int, int], list[int]] = {}
        self._perhaps: dict[tuple[int, int], list[int]] = {}
        self._departed: set[Host] = set()
        self._released: set[tuple[int, int]] = set()  # region and page
        self.replicated: set[int] = set()

    def stored(self, thread: Thread, region: Region, word: int, value: int) -> None:
        """A store is hitting memory: nobody else may see the page at this moment."""
        host = thread.process.host
        world = self._cluster.world
        if not host.trusted:
            world.counts["store of a node that is out"] += 1
            return
        page = word * WORD // PAGE_BYTES
        holders = self._cluster.kernel.present.get((region.number, page), {})
        others = [other.name for other in holders if other is not host and other.trusted]
        if others:
            raise SimulationError(
                f"{thread.name} on {host.name} stores to word {word} of region {region.name!r}, "
                f"whose page {', '.join(others)} can read"
            )
        self._sizes[region.number] = region.page_size
        self._latest[region.number, word] = value
        self._since.setdefault((region.number, word), [0]).append(value)
        self._perhaps.pop((region.number, word), None)
        world.counts["stores"] += 1
        world.note("%s stores r%d w%d = %d", thread.name, region.number, word, value)

    def loaded(self, thread: Thread, region: Region, word: int, value: int) -> None:
        """A load has given a value: it must be what was stored last."""
        host = thread.process.host
        world = self._cluster.world
        if not host.trusted:
            world.counts["load of a node that is out"] += 1
            return
        perhaps = self._perhaps.pop((region.number, word), None)
        if perhaps is not None and value in perhaps:
            world.counts["word that is as it was released"] += value != self._latest[region.number, word]
            self._latest[region.number, word] = value
        last = self._latest.get((region.number, word), 0)
        if value != last:
            raise SimulationError(
                f"{thread.name} on {host.name} loads {value} from word {word} of region {region.name!r} "
                f"(r{region.number}), but {last} was stored last"
            )
        world.counts["loads"] += 1
        world.note("%s loads r%d w%d = %d", thread.name, region.number, word, value)

    # -- releases ------------------------------------------------------------------------------------------

    def about_to_release(self, host: Host, region: int) -> dict[tuple[int, int], int]:
        """A flush begins: how far each word is that the node has."""
        return {
            (number, word): len(values)
            for (number, word), values in self._since.items()
            if number == region and inside.held(host.pager, region, word * WORD // self._sizes[region])
        }

    def released(self, region: int, before: dict[tuple[int, int], int]) -> None:
        """It is over: what was stored before it must not be lost with one node."""
        for key, length in before.items():
            if key[0] == region and len(self._since[key]) >= length:
                del self._since[key][: length - 1]
                self._released.add((region, key[1] * WORD // self._sizes[region]))

    # -- pages that go with a node ---------------------------------------------------------------------------

    def departed(self, gone: Host) -> None:
        """A node has gone: what only it had, and what was on its way somewhere, may be lost; nothing else may."""
        self._departed.add(gone)
        for (region, word), _ in self._latest.items():
            page = word * WORD // self._sizes[region]
            if self._others_have(gone, region, page):
                continue
            if region in self.replicated:
                self._perhaps[region, word] = list(self._since[region, word])
            if (region, page) not in self._released or len(self._departed) > 1:
                self._may_be_lost.add((region, page))
        self._may_be_lost.update(gone.asked)
        for host in self._cluster.hosts.values():
            self._may_be_lost.update(inside.open_requests(host.pager))
        for region, page in self._pages_in_memory_of(gone):
            if not self._others_have(gone, region, page) and (
                (region, page) not in self._released or len(self._departed) > 1
            ):
                self._may_be_lost.add((region, page))

    def both_were_killed(self) -> None:
        """An agent, and the directory, which alone knew what was under way: that may be lost."""
        present = self._cluster.kernel.present
        for region, pages in inside.sizes(self._cluster.directory.machine).items():
            each = self._sizes.get(region, PAGE_BYTES) // PAGE_BYTES
            for page in range(pages):
                if not any(present.get((region, part)) for part in range(page * each, (page + 1) * each)):
                    self._may_be_lost.add((region, page))

    def took_the_rest(self, gone: Host) -> None:
        """A node has gone while a directory that begins again did not know what it had: it may have been anything."""
        for region, pages in inside.sizes(self._cluster.directory.machine).items():
            for page in range(pages):
                if not self._others_have(gone, region, page):
                    self._may_be_lost.add((region, page))

    def _pages_in_memory_of(self, host: Host) -> list[tuple[int, int]]:
        return [
            (region.number, page)
            for region in host.pager.regions.values()
            for page in range(region.pages)
            if inside.held(host.pager, region.number, page)
        ]

    def _others_have(self, gone: Host, region: int, page: int) -> bool:
        return any(
            inside.held(host.pager, region, page) in (inside.SHARED, inside.EXCLUSIVE)
            for host in self._cluster.hosts.values()
            if host is not gone and host.trusted and host.serving
        )

    # -- in the end ------------------------------------------------------------------------------------------

    def check_quiet(self) -> None:
        """Nothing is under way, directory and nodes agree about every page, and memory has what was stored."""
        directory = self._cluster.directory.machine
        found = inside.busy_in_directory(directory)
        members = [host for host in self._cluster.hosts.values() if host.trusted and host.serving]
        for host in members:
            found += [f"{host.name}: {what}" for what in inside.busy_on_node(host.pager, host.applications)]
        if found:
            raise SimulationError("not quiet in the end:\n  " + "\n  ".join(found))
        stored = self._contents()
        for region in inside.regions(directory):
            self._check_region(region, members, stored)

    def _check_region(self, region: int, members: list[Host], stored: Contents) -> None:
        directory = self._cluster.directory.machine
        known = [host for host in members if region in host.pager.regions]
        pages = max((host.pager.regions[region].pages for host in known), default=0)
        for page in range(pages):
            state, owner, copies = inside.holding(directory, region, page)
            where = f"region {region}, page {page}: the directory says state {state}, owner {owner}, copies {copies:b}"
            if state == inside.LOST and (region, page) not in self._may_be_lost:
                raise SimulationError(f"{where}, but others had it when a node went")
            for host in known:
                self._check_page(
                    host, region, page, state if copies >> host.number & 1 else inside.UNTOUCHED, where, stored
                )

    def _check_page(self, host: Host, region: int, page: int, state: int, where: str, stored: Contents) -> None:
        has = inside.held(host.pager, region, page)
        if has == inside.LOST:
            has = inside.UNTOUCHED
        if has != state:
            raise SimulationError(f"{where}; {host.name} says state {has}")
        memory = host.pager.regions[region]
        file = self._cluster.kernel.files[memory.memfd]
        each = memory.page_size // PAGE_BYTES
        for part in range(page * each, (page + 1) * each):
            content = file.pages.get(part)
            if (content is not None) != (state in (inside.SHARED, inside.EXCLUSIVE)):
                raise SimulationError(f"{where}; {host.name} has memory there: {content is not None}")
            if content is not None and content != self._perhaps_as(content, region, part, stored.get((region, part))):
                raise SimulationError(f"{where}; what {host.name} has there is not what was stored")

    def _perhaps_as(self, content: bytes | bytearray, region: int, part: int, stored: bytearray | None) -> bytearray:
        """What was stored, with what may have been rolled back as it is."""
        expected = bytearray(stored or _ZEROS)
        for (number, word), values in self._perhaps.items():
            at = word * WORD % PAGE_BYTES
            found = int.from_bytes(content[at : at + WORD], "little")
            if (number, word * WORD // PAGE_BYTES) == (region, part) and found in values:
                expected[at : at + WORD] = content[at : at + WORD]
        return expected

    def _contents(self) -> Contents:
        """What was stored, by region and kernel page."""
        found: Contents = {}
        for (region, word), value in self._latest.items():
            at = word * WORD % PAGE_BYTES
            content = found.setdefault((region, word * WORD // PAGE_BYTES), bytearray(PAGE_BYTES))
            content[at : at + WORD] = value.to_bytes(WORD, "little")
        return found
