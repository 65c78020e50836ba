"""A notebook server that everybody gets at once: it answers any request, and its queue of connections is long.

python _session.py PORT
"""

from __future__ import annotations

import asyncio
import sys

import jupyterhub
from tornado.web import Application, RequestHandler


class Answer(RequestHandler):
    def get(self) -> None:
        self.set_header("X-JupyterHub-Version", jupyterhub.__version__)
        self.write({"version": "null"})


async def main() -> None:
    Application([(r".*", Answer)]).listen(int(sys.argv[1]), "127.0.0.1", backlog=4096)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
