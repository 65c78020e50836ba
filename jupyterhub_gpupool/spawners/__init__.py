"""The spawners: a lease around the stock spawners of JupyterHub."""
