"""The directory: who owns each page, who holds copies, who waits; membership, the region registry, locks.

It never touches page data. ``machine``, ``holdings``, ``registry`` and ``sync`` are pure; ``service`` is the shell.
"""
