"""``gpupool status``: the pool and its sessions on a terminal.  Pure but for ``watch``; it changes nothing."""
