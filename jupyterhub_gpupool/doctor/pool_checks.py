"""Checks of the pool's own files and ledger, and of the machine under them.  Pure."""

from __future__ import annotations

from .facts import Books, Disk, Kept, Pool
from .model import Result, check, error, listed, ok, skipped, warning

LATE_SWEEPS = 5
"""Sweep intervals without a whole sweep after which the service counts as stuck."""
LEAST_LATE = 60.0

CLOCK_SLACK = 5.0
"""Seconds by which two clocks of one pool may differ."""

GIB = 1024**3
ENGINE_LEAST, ENGINE_ADVISED = 2 * GIB, 20 * GIB
STATE_LEAST, STATE_ADVISED = GIB // 10, GIB
NODES_LEAST = 0.01

REMOTE = frozenset(
    {
        "nfs",
        "nfs4",
        "cifs",
        "smb3",
        "smbfs",
        "9p",
        "ceph",
        "glusterfs",
        "lustre",
        "beegfs",
        "gpfs",
        "afs",
        "fuse.sshfs",
    }
)
"""File systems on which SQLite's locks do not hold."""


@check(
    "configuration", "pool", "The configuration that the hub handed over can be read.", "pool", reports="pool"
)
def configuration(pool: Pool) -> Result:
    simulated = ", simulated GPUs" if pool.simulated else ""
    return ok(
        f"Pool {pool.name}, backend {pool.backend}, mode {pool.mode}, {len(pool.offer)} profile(s){simulated}."
    )


@check("ledger", "pool", "The ledger can be read, and its rows keep its rules.", "books", reports="books")
def ledger(books: Books) -> Result:
    if books.broken:
        return error(
            f"The ledger breaks its own rules: {listed(books.broken, 2)}.",
            "gpupool drain pool; keep a copy (sqlite3 LEDGER '.backup copy.sqlite') and report it",
        )
    return ok(f"{books.place}: {len(books.devices)} GPU(s), and every rule holds.")


@check("sweep", "pool", "The service looks at the GPUs.", "books", "pool")
def sweep(books: Books, pool: Pool) -> Result:
    fix = "look at the hub's log for gpupool; the hub starts the service"
    if books.swept_at is None:
        return warning("The service has not made a whole sweep yet.", fix)
    age = books.now - books.swept_at
    if age > max(LEAST_LATE, LATE_SWEEPS * pool.sweep_interval):
        return error(
            f"The last whole sweep was {age:.0f} s ago, one is due every {pool.sweep_interval:g} s: nothing is taken "
            "back, and nothing new is seen.",
            fix,
        )
    return ok(f"The last whole sweep was {max(0.0, age):.0f} s ago.")


@check("sick-gpus", "pool", "All GPUs of the pool are well.", "books")
def sick_gpus(books: Books) -> Result:
    bad = [device for device in books.devices if device.health != "ok"]
    if bad:
        words = listed(
            f"GPU {one.index} is {one.health.value} ({one.health_reason or 'no reason'})" for one in bad
        )
        return warning(
            f"{words}; nobody is given it.", "gpupool status; nvidia-smi -q -d ECC,PAGE_RETIREMENT"
        )
    return (
        ok(f"All {len(books.devices)} GPU(s) are well.")
        if books.devices
        else skipped("The pool knows no GPU.")
    )


@check("file-modes", "pool", "Ledger, configuration and secrets are for their owner alone.", "kept")
def file_modes(kept: tuple[Kept, ...]) -> Result:
    files = [one for one in kept if not one.folder]
    if open_to := [one for one in files if one.mode & 0o077 and not one.shielded]:
        named = listed(f"{one.path} ({one.mode & 0o777:04o})" for one in open_to)
        return error(
            f"Other accounts can read or change {named}.",
            f"chmod 600 {' '.join(one.path for one in open_to)}",
        )
    if not files:
        return skipped("None of the files is there yet.")
    return ok(f"{len(files)} file(s) have mode 0600, or lie in a folder that is their owner's alone.")


@check("folder-mode", "pool", "Nobody else can put files beside the ledger.", "kept")
def folder_mode(kept: tuple[Kept, ...]) -> Result:
    folders = [one for one in kept if one.folder]
    if writable := [one for one in folders if one.mode & 0o022]:
        return error(
            f"Other accounts can replace the files in {listed(one.path for one in writable)}.",
            f"chmod 700 {' '.join(one.path for one in writable)}",
        )
    if open_to := [one for one in folders if one.mode & 0o055]:
        return warning(
            f"Other accounts can look into {listed(one.path for one in open_to)}.",
            f"chmod 700 {' '.join(one.path for one in open_to)}",
        )
    return (
        ok(f"{listed(one.path for one in folders)} is for its owner alone.")
        if folders
        else skipped("No folder.")
    )


@check("ledger-disk", "pool", "The ledger lies on a local disk.", "state_disk")
def ledger_disk(disk: Disk) -> Result:
    if disk.kind in REMOTE:
        return error(
            f"The ledger lies on {disk.kind} ({disk.path}), where SQLite's locks do not hold: it will be damaged.",
            "stop the hub, move the file to a local disk, and set c.GPUPool.database_url",
        )
    return ok(f"{disk.path} is on a local disk{f' ({disk.kind})' if disk.kind else ''}.")


def _room(disk: Disk, least: int, advised: int, fix: str) -> Result:
    figures = f"{disk.what} ({disk.path}) has {disk.free / GIB:.1f} of {disk.total / GIB:.1f} GiB left"
    if disk.nodes_left < NODES_LEAST:
        return error(f"{disk.what} ({disk.path}) has no room for more files: its inodes are used up.", fix)
    if disk.free < least:
        return error(f"{figures}: writing will fail.", fix)
    if disk.free < advised:
        return warning(f"{figures}.", fix)
    return ok(f"{figures}.")


@check("state-space", "machine", "There is room where the ledger lies.", "state_disk")
def state_space(disk: Disk) -> Result:
    return _room(disk, STATE_LEAST, STATE_ADVISED, f"df -h {disk.path}; make room")


@check("engine-space", "machine", "There is room where images and containers lie.", "engine_disk")
def engine_space(disk: Disk) -> Result:
    return _room(disk, ENGINE_LEAST, ENGINE_ADVISED, "docker system df; docker image prune")


@check("clock", "machine", "The machine's clock is kept in step.", "clock")
def clock(synchronized: bool) -> Result:
    if not synchronized:
        return warning(
            "The machine's clock is not kept in step with others: books, budgets and logins follow it.",
            "timedatectl set-ntp true",
        )
    return ok("The clock is synchronized.")


@check("ledger-clock", "machine", "The ledger's clock and this machine's agree.", "books")
def ledger_clock(books: Books) -> Result:
    if abs(books.clock_ahead) > CLOCK_SLACK:
        way = "ahead of" if books.clock_ahead > 0 else "behind"
        return warning(
            f"The database's clock is {abs(books.clock_ahead):.0f} s {way} this machine's.",
            "timedatectl set-ntp true, on both machines",
        )
    if books.swept_at is not None and books.swept_at - books.now > CLOCK_SLACK:
        return warning(
            f"The last sweep lies {books.swept_at - books.now:.0f} s in the future: the clock was set back.",
            "timedatectl; it mends itself when that time has come",
        )
    return ok("They agree.")
