"""Regions: attaching to one, and the memory, arrays and operations of one that is attached."""

from __future__ import annotations

import ast
import functools
import math
import operator
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from dsm import client, geometry, local, memory, release, travel, wire
from dsm.constants import PAGE_BYTES, REGION_BYTES_MAX
from dsm.errors import InvalidArgument, NodeUnreachable, ProtocolError, RegionClosed
from dsm.forking import Mapping, map_region

if TYPE_CHECKING:
    import mmap

    import numpy as np
    import numpy.typing as npt

    Shape: TypeAlias = int | Iterable[int]

_DIMENSIONS_MAX: Final = 32
"""Of an array in every release of numpy."""


def attach(
    name: str,
    size: int | None = None,
    *,
    shape: Shape | None = None,
    dtype: npt.DTypeLike | None = None,
    create: bool | None = None,
    page_size: int | None = None,
    persist: bool | None = None,
    replicas: int | None = None,
) -> Region:
    """Attach to the region of shared memory called ``name``, on whichever host its data is.

    >>> region = dsm.attach("grid", shape=(1024, 1024), dtype="f8")  # doctest: +SKIP
    >>> region.array[0, :] = 1.0                                     # every process of every node sees it

    A region exists from its creation until somebody unlinks it and the last process has detached; with
    ``persist=False``, until the last process has detached or ended, however it ended. It begins as zeros.

    Parameters
    ----------
    name
        1 to 255 printable characters without ``/``.
    size
        Bytes; for a region without a shape. Neither size nor shape: the region must exist.
    shape, dtype
        What ``region.array`` is; dtype ``"f8"`` (float64) if only a shape is given. Any dtype without Python objects.
    create
        None: open the region, or create it if a size or shape is given and it does not exist.
        True: it must not exist. False: it must.
    page_size
        Bytes that travel together, a multiple of 4096, 2 MiB at most. None: 4096, or what an existing region has.
    persist
        Whether the region outlives its last user. None: True, or what an existing region has.
    replicas
        1: what was written before a lock was released, a barrier reached, or :meth:`Region.flush` returned is on two
        nodes, and outlives the loss of one. None: 0, or what an existing region has.

    Raises
    ------
    InvalidArgument, RegionTooLarge
        Arguments that can never be right, or a size that this process cannot map.
    RegionNotFound, RegionExists, RegionMismatch
        It does not exist; it does, and ``create=True``; it does, with another size, shape, dtype, page size or persist.
    NodeUnreachable, DirectoryUnreachable, UserfaultfdUnavailable, PermissionDenied
        Each says what to do. Without ``DSM_NODE`` in the environment and without an agent on the user's default
        socket, a directory and node for this host are started.
    """
    question = _question(name, size, shape, dtype, create, page_size, persist, replicas)
    connection = client.connect()
    try:
        attached, fds = connection.ask_for_descriptors(question, wire.Attached)
        try:
            pages, mapping = map_region(name, connection, attached, fds)
        finally:
            local.close_all(fds)
    except BaseException:
        connection.close()
        raise
    if mapping.options.get("replicas"):
        release.add(mapping)
    return Region(pages, mapping)


class Region:
    """A region of shared memory, attached to this process by :func:`attach`. Also a context manager, which closes it.

    Arrays and memoryviews of it stay valid after :meth:`close`; the process detaches when the last of them has gone.
    In a forked child they go on, as does the region. A pickled Region attaches again where it is unpickled.
    """

    def __init__(self, pages: mmap.mmap, mapping: Mapping) -> None:
        self._pages: mmap.mmap | None = pages
        self._mapping = mapping
        self._array: npt.NDArray[Any] | None = None

    @property
    def name(self) -> str:
        """The name it was attached by."""
        return self._mapping.name

    @property
    def size(self) -> int:
        """Bytes."""
        return self._mapping.size

    @property
    def page_size(self) -> int:
        """Bytes that travel together."""
        return self._mapping.page_size

    @property
    def persist(self) -> bool:
        """Whether it outlives its last user."""
        return bool(self._mapping.options.get("persist", True))

    @property
    def buf(self) -> memoryview:
        """All of it, as a writable memoryview of ``size`` bytes."""
        return memoryview(self._open())[: self.size]

    @property
    def array(self) -> npt.NDArray[Any]:
        """The array of the shape and dtype it was created with; of bytes (uint8) if it was created by its size."""
        self._open()
        if self._array is None:
            self._array = self.ndarray(*_layout_of(self._mapping.options, self.size))
        return self._array

    def ndarray(self, shape: Shape, dtype: npt.DTypeLike, offset: int = 0) -> npt.NDArray[Any]:
        """Another view: an array of ``shape`` and ``dtype`` that begins ``offset`` bytes into the region.

        Raises :class:`~dsm.errors.InvalidArgument` if it does not lie within.
        """
        import numpy as np

        buffer = self.buf
        dims, kind = _shape(shape), _dtype(dtype)
        start, length = _integer(offset, "offset"), math.prod(dims) * kind.itemsize
        if start < 0 or start + length > self.size:
            raise InvalidArgument(
                f"an array of {length} bytes at offset {start} does not lie within region {self.name!r}, "
                f"which has {self.size} bytes: choose a smaller shape or offset"
            )
        return np.ndarray(dims, kind, buffer, start)

    def prefetch(self, start: int = 0, stop: int | None = None, write: bool = False) -> None:
        """Fetch bytes ``[start, stop)`` to this node, for writing if ``write``, and return when all have been here.

        Unlike touching them it does not hold the GIL, and it fetches many pages at once. Pages that other nodes
        want may leave again at any time. Raises :class:`~dsm.errors.PageLost` if some of them are lost.
        """
        pages = self._open()  # kept alive until the end: another thread may close the region meanwhile
        first, last = self._range(start, stop)
        if first < last:
            self._mapping.connection.wait(wire.Prefetch(first, last, bool(write)))
        del pages

    @property
    def replicas(self) -> int:
        """On how many other nodes what was released is kept."""
        return int(self._mapping.options.get("replicas", 0))

    def flush(self) -> None:
        """Return when all that this node has of it is on another node, too (``replicas=1``; else at once).

        Releasing a lock and waiting at a barrier do the same. Where there is one node only, nothing is kept elsewhere.
        """
        self._open()
        release.mirror(self._mapping)

    def lost(self) -> list[tuple[int, int, str]]:
        """What of it is lost: byte ranges ``(start, stop, node)``, of which ``node`` had the only copy and is gone.

        Touching such a byte is SIGBUS, fetching it :class:`~dsm.errors.PageLost`, until :meth:`reset`.
        """
        self._open()
        number, size = self._mapping.region, self.page_size
        pages = geometry.pages_in(self.size, size)
        found: list[tuple[int, int, str]] = []
        at = 0
        while at < pages:
            question = wire.Query(0, "lost", number, at, min(pages - at, 2**32 - 1))
            answer = self._mapping.connection.ask(question, wire.Answer).value
            found += [(start * size, min(stop * size, self.size), node) for start, stop, node in answer["lost"]]
            at = answer["until"]
        return geometry.joined(found)

    def reset(self, start: int = 0, stop: int | None = None) -> None:
        """Make zeros of what is lost of bytes ``[start, stop)``, for everyone. Pages that are not lost stay as they
        are, whole pages at a time: what shares a page with a byte of the range is reset with it."""
        pages = self._open()
        first, last = self._range(start, stop)
        for a, b, _ in self.lost():
            a, b = max(a, first), min(b, last)
            if a < b:
                self._mapping.connection.wait(wire.Reset(a, b))
        del pages

    def stats(self) -> dict[str, Any]:
        """Counts and latencies of this region on this node, of all its processes."""
        pages = self._open()
        value = self._mapping.connection.ask(wire.StatsQuery(), wire.Answer).value
        del pages
        return value

    def close(self) -> None:
        """Let go of the memory. The process detaches with the last array or memoryview of it. May be repeated."""
        self._array = None
        self._pages = None

    def unlink(self) -> None:
        """Free the name, for everyone. Processes that are attached go on; the memory ends with the last of them."""
        with client.borrowed() as connection:
            connection.ask(wire.Unlink(0, self.name), wire.Ready)

    def _range(self, start: int, stop: int | None) -> tuple[int, int]:
        first, last = _integer(start, "start"), self.size if stop is None else _integer(stop, "stop")
        if not 0 <= first <= last <= self.size:
            raise InvalidArgument(
                f"bytes {first} to {last} are not a range of region {self.name!r}, which has {self.size} bytes"
            )
        return first, last

    def _open(self) -> mmap.mmap:
        if self._pages is None:
            raise RegionClosed(f"region {self.name!r} was closed: attach to it again")
        if self._mapping.lost:
            raise NodeUnreachable(self._mapping.lost)
        return self._pages

    def __enter__(self) -> Region:
        self._open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        self._open()
        options = self._mapping.options
        what: dict[str, Any] = {"size": self.size}
        if "shape" in options:
            what["shape"], what["dtype"] = _layout_of(options, self.size)
        return travel.reduced(functools.partial(attach, create=False, page_size=self.page_size, **what), self.name)

    def __repr__(self) -> str:
        state = "closed" if self._pages is None else f"node {self._mapping.node!r}"
        options = self._mapping.options
        array = f", shape {tuple(options['shape'])}, dtype {options.get('dtype')!r}" if "shape" in options else ""
        return f"<dsm.Region {self.name!r}: {self.size} bytes{array}, pages of {self.page_size} bytes, {state}>"


# -- arguments -----------------------------------------------------------------------------------------


def _question(
    name: str,
    size: int | None,
    shape: Shape | None,
    dtype: npt.DTypeLike | None,
    create: bool | None,
    page_size: int | None,
    persist: bool | None,
    replicas: int | None,
) -> wire.Attach:
    client.check_name(name, "region")
    if create not in (None, True, False):
        raise InvalidArgument(f"create is True, False or None, not {create!r}")
    if persist not in (None, True, False):
        raise InvalidArgument(f"persist is True, False or None, not {persist!r}")
    asked = None if size is None else _bytes(size)
    unit = PAGE_BYTES if page_size is None else _integer(page_size, "page_size")
    options: dict[str, Any] = {}
    if shape is not None:
        asked, options = _array_size(asked, shape, "f8" if dtype is None else dtype)
    elif dtype is not None:
        raise InvalidArgument("dtype needs a shape: give shape=, or leave dtype out and use region.ndarray()")
    if persist is not None:
        options["persist"] = bool(persist)
    if replicas is not None:
        options["replicas"] = _integer(replicas, "replicas")
    geometry.check_size(1 if asked is None else min(asked, REGION_BYTES_MAX), unit)
    if asked is None:
        if create:
            raise InvalidArgument("create=True needs a size or a shape")
        return wire.Attach(name, 0, 0 if page_size is None else unit, wire.MUST_EXIST, options)
    memory.check_address_space(geometry.pages_in(asked, unit) * unit)
    how = {None: wire.OPEN_OR_CREATE, True: wire.MUST_NOT_EXIST, False: wire.MUST_EXIST}[create]
    return wire.Attach(name, asked, 0 if page_size is None else unit, how, options)


def _array_size(size: int | None, shape: Shape, dtype: npt.DTypeLike) -> tuple[int, dict[str, Any]]:
    """The bytes of the array and how the region remembers it."""
    kind = _dtype(dtype)
    base = kind.base
    dims = _shape(shape) + kind.shape  # as numpy has it for a dtype that is itself an array
    length = math.prod(dims) * base.itemsize
    if size is not None and size != length:
        raise InvalidArgument(
            f"an array of shape {dims} and dtype {base} has {length} bytes, not {size}: leave size out"
        )
    return length, {"shape": list(dims), "dtype": _dtype_text(base)}


def _bytes(size: object) -> int:
    try:
        return _integer(size, "size")
    except InvalidArgument as error:
        raise InvalidArgument(f"{error}: it counts bytes; give the shape of an array as shape=") from None


def _integer(value: object, what: str) -> int:
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise InvalidArgument(f"{what} is a whole number, not {value!r}") from None


def _shape(shape: Shape) -> tuple[int, ...]:
    sides = tuple(shape) if isinstance(shape, Iterable) else (shape,)
    dims = tuple(_integer(side, "each side of a shape") for side in sides)
    if len(dims) > _DIMENSIONS_MAX:
        raise InvalidArgument(f"a shape has {_DIMENSIONS_MAX} sides at most, not {len(dims)}")
    if any(side < 0 for side in dims):
        raise InvalidArgument(f"a shape has no negative sides, unlike {dims}")
    return dims


def _dtype(dtype: npt.DTypeLike) -> np.dtype[Any]:
    import numpy as np

    try:
        kind = np.dtype(dtype)
    except (TypeError, ValueError) as error:
        raise InvalidArgument(f"numpy does not know the dtype {dtype!r} ({error})") from None
    if kind.hasobject:
        raise InvalidArgument(f"dtype {kind} holds Python objects, which live in one process: use numbers or bytes")
    if not kind.itemsize:
        raise InvalidArgument(f"items of dtype {kind} have no bytes: give a length, as in 'S16'")
    return kind


def _dtype_text(kind: np.dtype[Any]) -> str:
    """What :func:`_dtype_from` turns into the same dtype on another host: ``"<f8"``, or a list of fields."""
    import numpy as np

    text = str(np.lib.format.dtype_to_descr(kind))
    if _dtype_from(text) != kind:
        raise InvalidArgument(
            f"dtype {kind} cannot be told to another process: attach with size=, and use region.ndarray()"
        )
    return text


def _dtype_from(text: str) -> np.dtype[Any]:
    import numpy as np

    descr: Any = ast.literal_eval(text) if text.startswith("[") else text
    return np.lib.format.descr_to_dtype(descr)


def _layout_of(options: dict[str, Any], size: int) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype of a region's array, from its options."""
    if "shape" not in options:
        return (size,), _dtype("u1")
    try:
        return _shape(options["shape"]), _dtype_from(options["dtype"])
    except (KeyError, TypeError, ValueError, SyntaxError, AttributeError) as error:
        raise ProtocolError(f"the region was created with a layout that is none ({options}): use ndarray()") from error
