"""The node agent: one per host. It owns the userfaultfds of the local applications and the node's copy of each region.

``machine`` and ``readahead`` are pure; ``memory`` moves pages in and out of the local applications; ``agent`` is the
loop.
"""
