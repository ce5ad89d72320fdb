"""A simulator: whole clusters of production code on a simulated clock, network and kernel, drawn from one seed.

**What runs is production code**: the directory's ``Cluster`` (membership, leases, registry, pages, locks, barriers); of
each node the ``Pager``, its machine, ``RegionMemory``, ``Userfaultfd``, ``Bulk`` and ``Applications`` with all its
bookkeeping of connections and tickets. Messages go through ``wire.encode`` and ``wire.decode``.

**What is simulated** lies below and around it:

- *Clock* (``world.py``): nanoseconds that only events move.
- *Network* (``network.py``): a delay for each message; order within a connection and none between connections; a
  connection that is cut stops and goes on later, as a TCP connection does through a pause; slow links; partitions.
- *Kernel* (``kernel.py``): memory files, userfaultfds and process memory, at the level of the functions that
  ``dsm/uffd.py``, ``nodes/memory.py`` and ``nodes/applications.py`` call: EAGAIN, partial COPY, ENOMEM of a control
  group, markers that survive a punch, faults told once until a WAKE, threads that wake late or for nothing. Application
  threads run *between* the calls that one turn of an agent makes, as they would on other cores, and an agent may lose
  its core there while all other hosts go on.
- *Agents' loop* (``host.py``) and *processes with threads* (``programs.py``) that run the workloads
  (``workloads.py``), each of which checks itself.
- *Faults* (``faults.py``): composed at random, and healed in the end.

**What is demanded** (``oracle.py``): at every store nobody else can read the page; every load gives what was stored
last, in the order of simulated time; no page is lost unless a node has died; the workloads' own sums are right. After
healing: every thread ends, everything falls quiet, directory and nodes agree about every page, and what is in memory is
what was stored.

**What is not simulated**, because it is not promised yet (README, "Not yet"): a node that was cut off for longer than
its lease may read old values until it is fenced, so its own loads are not checked from the moment the directory gives
it up; pages that only a dead, departed or fenced node had are lost, and whoever touches one is ended; messages that a
broken TCP connection loses although both sides live on; restarts of an agent or of the directory. Not simulated at
all: fork, an application that meddles with its own userfaultfd (and so EEXIST of a COPY, which nobody else could bring
about), malformed messages (``tests/system`` and the fuzzers do these), a host that runs out of memory altogether.
"""
