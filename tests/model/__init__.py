"""Every interleaving of the production machines, breadth first: what can happen in a small cluster, all of it.

One directory and a few nodes, the simulated shells of tests/machines/simulated_cluster.py around them, a network that
keeps order within a channel and none between channels. Each node may begin a few operations (its *budget*) at any time:
loads, stores, explicit prefetches, read-ahead, evictions, the end of an application. With ``departures``, any node may
also be lost at any time, and with it any last part of what it had sent on each of its channels.

What is checked in every state, and over the graph of all states, is in :mod:`model.checks` and :mod:`model.progress`.

Two kinds of exploration, by when a hold may expire:

- *patient*: not before the thread that it was made for has retried its access. Production promises no more than that a
  hold is longer than a few context switches (``dsm.constants.HOLD_US``); that this is long enough is the assumption
  under which the protocol has no livelock, and a patient exploration shows exactly this: with it, no cycle of states.
- *hasty*: at any time, as on a machine that is too slow for its own holds. Everything else must still be true, and a
  way to the end must exist from everywhere; but a cycle of states is no fault there.

With ``stepwise`` the effects of one step of a node happen one by one, as do protecting, reading, dropping and sending
a page that is supplied: threads of that node and everybody else go on in between (:mod:`model.stepwise`). Otherwise a
step is whole. With ``programs`` each node begins given operations in a given order: that leads deeper than any can.

What is not explored: more than one extent or region. The shells are those of simulated_cluster.py; the
machines and the bulk queue are production's.

How it is fast: a machine is a pure function of its state and an event, so one *side* (the directory, or a node with its
shell) takes each step only once, however many states of the cluster that side's state is part of
(:class:`model.explore.World`). How states are made comparable: :mod:`model.state`.

``make model`` explores everything; the tests here explore what is small, and seed bugs to see that each is found.
"""
