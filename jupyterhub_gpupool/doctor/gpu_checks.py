"""Checks of the GPUs, their driver, and how they are cut up.  Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from ..errors import Rejected
from ..model import Device, Instance, Kind, Wish
from ..placement import check_possible
from ..profiles import Profile, ProfileError, variants
from ..profiles.schema import Where
from ..profiles.settings import build
from .facts import Books, Driver, Pool, Processes, Smi
from .model import Result, check, error, listed, ok, skipped, warning

SIMULATED = "simulated"

DRIVER_FIX = "install the driver of your distribution (Debian: apt-get install nvidia-driver), then reboot"

USABLE = ("Default", "Exclusive_Process", "[N/A]")
"""Compute modes, as ``nvidia-smi`` calls them, in which programs can use a GPU."""


def _grave(gpus: str, reason: str, fix: str) -> Result:
    """An error, unless the pool has simulated GPUs: then nothing depends on the real ones."""
    if gpus == SIMULATED:
        return warning(f"{reason} The pool's GPUs are simulated, so no session needs them.", fix)
    return error(reason, fix)


@check("driver-loaded", "gpu", "NVIDIA's kernel module is loaded.", "driver", "gpus")
def driver_loaded(driver: Driver, gpus: str) -> Result:
    if driver.module:
        return ok(f"NVIDIA's driver {driver.module} is loaded.")
    if driver.nouveau and driver.cards:
        return _grave(
            gpus,
            "The kernel's own driver (nouveau) has the GPUs, so NVIDIA's cannot.",
            "install NVIDIA's driver, which turns nouveau off, then reboot",
        )
    if driver.libraries and driver.cards:
        return _grave(
            gpus, "NVIDIA's driver is installed, but its kernel module is not loaded.", "modprobe nvidia"
        )
    if driver.cards:
        return _grave(gpus, f"{driver.cards} NVIDIA GPU(s) are here without a driver.", DRIVER_FIX)
    if gpus == "real":
        return error("The pool has real GPUs, and no NVIDIA driver is loaded here.", DRIVER_FIX)
    why = "The pool's GPUs are simulated" if gpus == SIMULATED else "This machine has no NVIDIA GPU"
    return skipped(f"{why}, and no driver is loaded.")


@check(
    "driver-library", "gpu", "The driver's library is of the version of its kernel module.", "driver", "gpus"
)
def driver_library(driver: Driver, gpus: str) -> Result:
    if not driver.module:
        return skipped("No driver is loaded.")
    if not driver.libraries:
        return _grave(
            gpus,
            f"The kernel module {driver.module} is loaded, but the library libnvidia-ml is not installed.",
            "apt-get install libnvidia-ml1 (or the package of your distribution), of the same version",
        )
    if driver.module not in driver.libraries:
        return _grave(
            gpus,
            f"The driver was upgraded while it runs: the kernel module is {driver.module}, the library "
            f"{listed(driver.libraries)}. New programs do not find the GPUs.",
            "gpupool drain pool; when no session runs: reboot, or rmmod nvidia_uvm nvidia && modprobe nvidia",
        )
    return ok(f"Kernel module and library are {driver.module}.")


@check("driver-answers", "gpu", "`nvidia-smi` answers, and in time.", "driver", "smi", "gpus")
def driver_answers(driver: Driver, smi: Smi, gpus: str) -> Result:
    if smi.status is None:
        return _grave(
            gpus,
            "nvidia-smi does not answer: the driver hangs.",
            "dmesg | grep -i -e nvrm -e xid; then reboot",
        )
    if smi.status == 0 and smi.cards:
        idle = [card.index for card in smi.cards if card.persistence == "Disabled"]
        if idle:
            return warning(
                f"{len(smi.cards)} GPU(s) answer, but persistence mode is off on {listed(idle)}: the driver lets go "
                "of a GPU that nobody uses, and each first start waits for it.",
                "systemctl enable --now nvidia-persistenced",
            )
        return ok(f"{len(smi.cards)} GPU(s): {listed(card.name for card in smi.cards)}.")
    if not driver.module:
        return skipped("No driver is loaded.")
    said = f": {smi.said}" if smi.said else ""
    if smi.status == 0:
        return _grave(gpus, f"nvidia-smi shows no GPU{said}.", "dmesg | grep -i -e nvrm -e xid")
    return _grave(gpus, f"nvidia-smi ended with status {smi.status}{said}.", "dmesg | grep -i -e nvrm -e xid")


@check("inventory", "gpu", "The GPUs and MIG instances that the pool knows are there.", "smi", "books")
def inventory(smi: Smi, books: Books) -> Result:
    real = [device for device in books.devices if not device.simulated]
    if not real:
        return skipped("The pool has no real GPU.")
    if smi.status != 0:
        return skipped("The driver does not say which GPUs there are.")
    there = {*(card.uuid for card in smi.cards), *smi.instances}
    known = [name for device in real for name in (device.id, *(item.id for item in device.instances))]
    if gone := [name for name in known if name not in there]:
        return error(
            f"The driver does not show {listed(gone)}, which the pool has: a GPU was lost, or MIG was laid out anew.",
            "nvidia-smi -L; the service takes the new layout over at its next sweep",
        )
    return ok(f"The driver shows all {len(real)} GPU(s) of the pool.")


@check("mig-mode", "gpu", "No change of the MIG mode waits for a reset.", "smi")
def mig_mode(smi: Smi) -> Result:
    if not smi.cards:
        return skipped("No GPU answers.")
    waits = [card.index for card in smi.cards if card.mig_pending != card.mig]
    if waits:
        return warning(
            f"GPU {listed(waits)} will change its MIG mode at the next reset, and not before.",
            f"gpupool drain the GPU; when no session runs: nvidia-smi -i {waits[0]} --gpu-reset",
        )
    on = sum(card.mig == "Enabled" for card in smi.cards)
    return ok(f"MIG is on on {on} of {len(smi.cards)} GPU(s), {len(smi.instances)} instance(s).")


@check("mps", "gpu", "MPS daemons and compute modes fit what the pool hands out.", "smi", "processes")
def mps(smi: Smi, processes: Processes) -> Result:
    if not smi.cards:
        return skipped("No GPU answers.")
    if barred := [card for card in smi.cards if card.compute_mode not in USABLE]:
        return error(
            f"GPU {listed(card.index for card in barred)} is in compute mode {barred[0].compute_mode}, in which "
            "TensorFlow cannot use it.",
            f"nvidia-smi -i {barred[0].index} -c DEFAULT",
        )
    alone = [card.index for card in smi.cards if card.compute_mode == "Exclusive_Process"]
    if alone and not processes.mps_controls:
        return warning(
            f"GPU {listed(alone)} lets in one process at a time, and no MPS daemon runs: a second notebook on a "
            "share, and a second kernel of one session, fail.",
            f"nvidia-smi -i {alone[0]} -c DEFAULT",
        )
    if processes.mps_controls and not alone:
        return warning(
            "An MPS daemon runs, and no GPU is kept for it: a program that misses its pipe runs beside it without "
            "limits, and nobody sees whose use it is.",
            "echo quit | nvidia-cuda-mps-control; or nvidia-smi -i INDEX -c EXCLUSIVE_PROCESS",
        )
    if processes.mps_controls:
        return ok(f"An MPS daemon runs, and GPU {listed(alone)} lets in nobody else.")
    return ok("No MPS daemon runs, and every GPU takes several processes.")


def wishes(offer: Mapping[str, Profile]) -> dict[str, Wish]:
    """What each profile asks for, its choices apart, by a name for a sentence; those without a GPU are left out."""
    found: dict[str, Wish] = {}
    for profile in offer.values():
        for words, layer in variants(profile):
            name = f"{profile.slug}{', ' if words else ''}{words}"
            try:
                wish = build(layer, Where(name)).wish
            except ProfileError:
                continue  # it depends on what a person types
            if wish.kind is not Kind.CPU:
                found[name] = wish
    return found


@check("profiles-served", "gpu", "Every profile can be served by some GPU of the pool.", "pool", "books")
def profiles_served(pool: Pool, books: Books) -> Result:
    if not books.devices:
        return skipped("The pool knows no GPU yet: the service has not looked.")
    asked = wishes(pool.offer)
    never = []
    for name, wish in asked.items():
        try:
            check_possible(wish, books.devices)
        except Rejected:
            never.append(f"{name} ({wish.describe()})")
    if never:
        return error(
            f"No GPU of the pool can ever serve {listed(never, 3)}: whoever chooses that is refused.",
            "change the profile, the GPU's mode, or lay out MIG: nvidia-smi mig -cgi 1g.10gb -C",
        )
    return ok(f"All {len(asked)} profiles and choices with a GPU can be served.")


@check("mig-wanted", "gpu", "Every MIG instance is asked for by some profile.", "pool", "books")
def mig_wanted(pool: Pool, books: Books) -> Result:
    instances = [(device, item) for device in books.devices for item in device.instances]
    if not instances:
        return skipped("The pool has no MIG instances.")
    asked = [wish for wish in wishes(pool.offer).values() if wish.kind is Kind.MIG]
    spare = Counter(item.profile for device, item in instances if not _asked(asked, device, item))
    if spare:
        named = listed(f"{count} × {name}" for name, count in sorted(spare.items()))
        name = next(iter(spare))
        return warning(
            f"No profile asks for {named}, so these MIG instances stay unused.",
            f'c.GPUPool.profiles: one with "gpu": {{"mig": "{name}"}}; or lay out MIG anew',
        )
    return ok(f"Profiles ask for all {len(instances)} MIG instances.")


def _asked(wishes: list[Wish], device: Device, item: Instance) -> bool:
    """Whether one of the wishes can be served by this very instance."""
    alone = replace(device, instances=(item,))
    for wish in wishes:
        try:
            check_possible(wish, (alone,))
        except Rejected:
            continue
        return True
    return False
