"""Every number of dsm, with its unit and its reason. Relations between them are asserted at the end."""

from __future__ import annotations

from typing import Final

PROTOCOL_VERSION: Final = 5
"""First field of every message. A peer that speaks another version is refused by name."""

# --- pages -------------------------------------------------------------------------------------

PAGE_BYTES: Final = 4096
"""The kernel's page and the default page of a region. A region's page is a multiple of it."""

EXTENT_BYTES: Final = 2 << 20
"""Pages map to directory shards by extent, and write-protect markers are installed by extent:
one page-table page's worth, so arming an extent costs one 4 KiB page-table page."""

FRAME_BYTES: Final = 128 << 10
"""Page data travels in frames of this size: larger ones are hardly faster, and a demanded page waits for one."""

REGION_BYTES_MAX: Final = 1 << 47
"""The user half of a 48-bit address space. A region must be smaller than that, and fit a gap of its processes'."""

REGIONS_MAX: Final = 1 << 20
NODES_MAX: Final = (1 << 16) - 1
NAME_CHARS_MAX: Final = 255
SHARDS_MAX: Final = 64
"""Of a directory: their addresses fit one text of a message, and no host has use for as many."""

# --- forward progress --------------------------------------------------------------------------

HOLD_US: Final = 250
"""How long a page that arrived for a waiting thread stays (Mirage's delta): a few context switches."""

# --- membership --------------------------------------------------------------------------------

HEARTBEAT_S: Final = 1.0
LEASE_S: Final = 15.0
"""A node silent for this long has left. Generous: a stopped laptop or a loaded CI machine is not a death."""

LEASE_MARGIN_S: Final = 2.0
"""A node's own lease ends so much earlier than the directory's patience: a heartbeat's time until it is noticed, and
the rest to take every page away."""

# --- time-outs of things that answer at once when they are there at all -------------------------

CONNECT_TIMEOUT_S: Final = 5.0
"""How long a node waits for its directory, and an application for its node, before saying so."""
DIRECTORY_TIMEOUT_S: Final = 3.0
"""How long a node waits for an answer of its directory before it tells the application: before that loses patience."""
START_TIMEOUT_S: Final = 20.0
"""How long the launcher waits for a service that it started to say that it is ready."""
STOP_TIMEOUT_S: Final = 5.0
"""How long a service may take to leave after SIGTERM before it is killed."""

# --- sizes of messages -------------------------------------------------------------------------

CONTROL_BYTES_MAX: Final = 1 << 20
"""No answer of the directory is larger: one that would be is an error instead."""
PACKED_BYTES_MAX: Final = CONTROL_BYTES_MAX // 2
"""Of many numbers in one message, packed."""
LOCAL_BYTES_MAX: Final = 128 << 10
"""One SEQPACKET message between an application and its node: below the default socket buffer."""

# --- the story of pages ------------------------------------------------------------------------

STORY_ENTRIES: Final = 1 << 14
"""Transitions that a service remembers, of all pages together: about 5 MB when full."""

STORY_TOLD_MAX: Final = 150
"""Transitions of one page that are told, and requests for it: those of a node and of the directory fit one message."""

# --- read-ahead --------------------------------------------------------------------------------

WINDOW_PAGES_MIN: Final = 4
WINDOW_BYTES_MAX: Final = 1 << 20
AHEAD_STREAMS: Final = 4
"""Places of one application that are followed at once: two threads with two arrays each."""

AHEAD_RECENT: Final = 8
"""Faults among which a new stream is looked for: three of a kind, of two streams in turn, and some noise."""

STRIDE_PAGES_MAX: Final = 64

AHEAD_PRICE_FAULTS: Final = 16
AHEAD_CREDIT_PAGES: Final = 16
"""What was asked for in vain on weak evidence is at most one page for so many faults, and so many pages besides."""

PREFETCH_BYTES: Final = 1 << 20
PREFETCHES_MAX: Final = 2
"""An explicit prefetch asks for so much at a time, and has so many requests open: enough to keep the owner's sender
busy, and little enough that a page which a thread touches meanwhile is not behind thousands of messages, even where
every page has another owner than its neighbour."""

assert EXTENT_BYTES % FRAME_BYTES == 0 and FRAME_BYTES % PAGE_BYTES == 0
assert HEARTBEAT_S * 5 <= LEASE_S
assert HEARTBEAT_S < LEASE_MARGIN_S < LEASE_S / 2
assert DIRECTORY_TIMEOUT_S + HEARTBEAT_S < CONNECT_TIMEOUT_S
assert WINDOW_BYTES_MAX <= EXTENT_BYTES and EXTENT_BYTES % PREFETCH_BYTES == 0
