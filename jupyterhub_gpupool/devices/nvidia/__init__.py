"""Real NVIDIA GPUs.

The driver is asked by a process of its own (:mod:`.worker`, which alone loads NVML, through :mod:`.binding`),
because a driver can hang for ever, crash, or be exchanged while it is in use.  The service speaks to that
process with a deadline (:mod:`.helper`), and what the answers mean is decided here, in pure functions:
:mod:`.layout` (what a GPU is), :mod:`.health` (may it be handed out), :mod:`.attribution` (who uses it).
:class:`.inventory.NvidiaDevices` puts them together.
"""
