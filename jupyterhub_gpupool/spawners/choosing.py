"""What a person may choose: the form, and the one door behind form, REST, links and stored options."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .. import profiles, trust
from ..errors import Rejected, Unavailable
from ..model import Kind, Lease
from .refusal import refuse

if TYPE_CHECKING:
    from .base import GPUPoolMixin

LINKED = "The link that brought you here has filled in the form. Nothing was started yet."


async def one_door(spawner: GPUPoolMixin, options: Any) -> None:
    """Resolve and authorise a choice: form, REST, query and stored options all come through here."""
    try:
        spawner._choice = spawner._resolve(options)
    except Rejected as problem:
        raise refuse(problem, spawner.handler) from problem


async def render_form(spawner: GPUPoolMixin) -> str:
    """The profile form with what is free and what is in the queue at this moment."""
    groups, notice, simulated, mps = spawner._groups, "", False, False
    offered: dict[str, profiles.Availability] = {}
    budget, over = None, []
    try:
        snapshot, offered = await spawner.pool.availability(
            spawner.user.name, groups, bool(spawner.user.admin)
        )
        budget = await spawner.pool.budget(snapshot, spawner.user.name, groups)
        over = profiles.over_in_words(snapshot.over, spawner.user.name, groups)
        simulated = any(device.simulated for device in snapshot.devices)
        mps = any(device.trust for device in trust.open_to(snapshot.devices, groups))
        owner = spawner._owner
        selected = await spawner.pool.ask("last_options", owner.hub_id, owner.created)
    except Unavailable as problem:
        notice, selected = problem.message, None
    if spawner.handler is not None:
        asked = {
            name.removeprefix("opt-"): [value.decode("utf8", "replace") for value in values]
            for name, values in spawner.handler.request.query_arguments.items()
            if name.startswith("opt-")
        }
        selected = profiles.parse_query(asked) or selected
        if asked and spawner.handler.request.method == "GET":
            notice = f"{LINKED} {notice}".strip()
    return profiles.render_form(
        spawner.pool.offer,
        user=spawner.user.name,
        groups=groups,
        availability=offered,
        selected=selected,
        notice=notice,
        simulated=simulated,
        mps=mps,
        isolation_note=spawner.isolation_note,
        admin=bool(spawner.user.admin),
        budget=budget,
        over=over,
    )


def granted_in_words(lease: Lease) -> str:
    """What was granted, for the person who waited for it."""
    if not lease.slices:
        return "a session without a GPU"
    many = len(lease.slices)
    memory = f"{min(item.memory_mib for item in lease.slices) / 1024:.4g} GiB"
    match lease.wish.kind:
        case Kind.MIG:
            what = f"MIG instance {lease.wish.mig}"
        case Kind.SHARE:
            what = f"a share of {lease.gpus:.3g} GPU"
        case _:
            what = "a whole GPU" if many == 1 else f"{many} whole GPUs"
    whose = f", counted for group {lease.group}" if lease.group else ""
    return f"{what}, {memory}{' each' if many > 1 else ''}{whose}"
