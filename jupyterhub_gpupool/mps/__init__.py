"""Shares of a GPU through NVIDIA's MPS: its daemons, what a session needs of them, and who misses them.

One daemon for each GPU, and so for the one group that trusts each other on it.  The service runs the daemons
(:mod:`.daemon`, :mod:`.manager`) and finds programs that go past them (:mod:`.strays`); the hub process
imports only what a launch needs (:mod:`.places`, :mod:`.client`).
"""
