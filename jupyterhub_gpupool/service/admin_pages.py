"""The pages of those who run the pool: limits with a preview of each change, and drains.

A change takes two steps, and both are forms: the first one shows whom it touches, the second one makes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from .. import fairness
from ..errors import Rejected, Unavailable
from ..fairness.words import figure
from ..ledger import EDITED, LimitRow, Snapshot
from ..model import Limit
from ..profiles import over_limit
from . import limit_form, shapes, times
from .admin import admins_only, foreseen
from .changes import Change
from .pages import Page
from .stream import Feed

STEPS = ("preview", "back", "change", "apply", "apply-back")
"""What the form's buttons ask for: to look at an edit or at the way back, to type again, to make either."""

MEANWHILE = "This limit was edited in the meantime, by {actor}. Look at the change again before you make it."


class Limits(Page):
    """All limits: configured, edited, in force, and what is held under them."""

    @admins_only
    async def get(self) -> None:
        done = self.query("done").get("done")
        rows: dict[str, LimitRow] = await self.pool.ask("limits")
        snapshot = await self.feed.fresh()
        over = [over_limit(scope, why) for scope, why in sorted(self.feed.over.items())]
        self.show(
            "limits.html",
            scopes=[_scope(row, snapshot, self.feed) for row in rows.values()],
            over=over,
            done=done if done in rows or done in snapshot.limits else None,
            cleared=done is not None and done not in rows,
            **_names(snapshot),
        )


class EditLimit(Page):
    """The form of one limit, the preview of a change, and the change."""

    allowed = ("GET", "POST")

    @admins_only
    async def get(self) -> None:
        scope = self.query("scope").get("scope", "").strip()
        wrong = _scope_problem(scope)
        if wrong:
            self.set_status(400)
            self.show("limit_scope.html", scope=scope, wrong=wrong, **_names(await self.feed.fresh()))
            return
        row = await self._row(scope)
        await self._form(row, limit_form.typed(row.effective), {})

    async def post(self) -> None:
        fields = self.read_form()
        await self._change(fields)

    @admins_only
    async def _change(self, fields: list[tuple[str, str]]) -> None:
        self.query()
        given = _once(fields, (limit_form.SCOPE, "step", "seen", "why", *limit_form.LABELS))
        scope, step = given.get(limit_form.SCOPE, "").strip(), given.get("step", "")
        if step not in STEPS:
            raise Rejected(f"The form has no step {step!a:.40}.", reason="bad-request")
        wrong = _scope_problem(scope)
        if wrong:
            raise Rejected(wrong, reason="bad-limit")
        row = await self._row(scope)
        if step == "change":
            await self._form(row, given, {})
        elif step in ("back", "apply-back"):
            await self._go_back(row, given, apply=step == "apply-back")
        else:
            await self._edit(row, given, apply=step == "apply")

    async def _edit(self, row: LimitRow, given: dict[str, str], *, apply: bool) -> None:
        keys, wrong = limit_form.read(row.scope, given)
        change = None
        if not wrong:
            try:
                change = await foreseen(self, row.scope, keys)
                if apply and await self._made("set_limit", row.scope, keys, given=given):
                    await self._done(row.scope)
                    return
            except ValueError as problem:  # more guaranteed than there is
                at = "gpus" if row.scope == fairness.POOL else "guaranteed_gpus"
                wrong = {at: limit_form.in_a_form(row.scope, str(problem))}
        if change is None or wrong:
            self.set_status(400)
            await self._form(row, given, wrong)
            return
        if apply:
            row = await self._row(row.scope)
        self._preview(row, change, given, back=False, meanwhile=apply)

    async def _made(self, verb: str, *what: Any, given: Mapping[str, str]) -> bool:
        """Make a change.  False: somebody has edited this limit since it was looked at, and nothing is changed."""
        actor, why, seen = self.known().actor, given.get("why", ""), given.get("seen", "")
        try:
            await self.pool.ask(verb, *what, actor=actor, why=why, seen=seen)
        except Unavailable as problem:
            if problem.reason != EDITED:
                raise
            return False
        return True

    async def _go_back(self, row: LimitRow, given: dict[str, str], *, apply: bool) -> None:
        if apply:
            try:
                made = await self._made("clear_limit", row.scope, given=given)
            except ValueError as problem:  # what it guarantees, another edit guarantees to somebody else now
                said = limit_form.in_a_form(row.scope, str(problem))
                raise Rejected(f"The edit still holds. {said}", reason="bad-limit") from None
            if made:
                await self._done(row.scope)
                return
            row = await self._row(row.scope)
        self._preview(row, await foreseen(self, row.scope, None), given, back=True, meanwhile=apply)

    async def _row(self, scope: str) -> LimitRow:
        rows: dict[str, LimitRow] = await self.pool.ask("limits")
        return rows.get(scope, LimitRow(scope))

    async def _done(self, scope: str) -> None:
        await self.feed.refresh()
        self.redirect(f"{self.hub_auth.base_url}limits?{urlencode({'done': scope})}", status=303)

    async def _form(self, row: LimitRow, given: Mapping[str, str], wrong: Mapping[str, str]) -> None:
        self.show(
            "limit_edit.html",
            scope=_scope(row, await self.feed.fresh(), self.feed),
            fields=limit_form.fields_of(row.scope),
            given=given,
            wrong=wrong,
            why=given.get("why", ""),
            profiles=list(self.pool.offer),
        )

    def _preview(
        self, row: LimitRow, change: Change, given: Mapping[str, str], *, back: bool, meanwhile: bool
    ) -> None:
        names = [field.name for field in limit_form.fields_of(row.scope) if field.name != "window"]
        lines = [
            (limit_form.LABELS[name], *(limit_form.words(name, one) for one in (change.before, change.after)))
            for name in names
        ]
        self.show(
            "limit_preview.html",
            scope=row.scope,
            lines=[line for line in lines if {*line[1:]} - {limit_form.UNLIMITED, "", "none", "no"}],
            change=change,
            touched=[(item.users, over_limit(item.scope, item.why)) for item in change.touched],
            given={name: text for name, text in given.items() if name in limit_form.LABELS and not back},
            why=given.get("why", ""),
            back=back,
            seen=row.mark,
            meanwhile=MEANWHILE.format(actor=row.actor or "somebody who cleared it") if meanwhile else "",
        )


class Drain(Page):
    """Take a GPU, or the pool, out of service and put it back; who is on it is named before.  Forget a lost one."""

    allowed = ("GET", "POST")

    @admins_only
    async def get(self) -> None:
        await self._form(self.query("device").get("device", ""), {}, "")

    async def post(self) -> None:
        fields = self.read_form()
        await self._change(fields)

    @admins_only
    async def _change(self, fields: list[tuple[str, str]]) -> None:
        self.query()
        given = _once(fields, ("device", "step", "at", "why"))
        device, step, text = (given.get(name, "").strip() for name in ("device", "step", "at"))
        if step not in ("drain", "undrain", "forget"):
            raise Rejected(f"The form has no step {step!a:.40}.", reason="bad-request")
        more: dict[str, Any] = {"actor": self.known().actor, "why": given.get("why", "")}
        try:
            if step == "drain":
                more["at"] = _moment(text)
            if step == "forget":
                await self.pool.ask("forget_device", device, **more)
            else:
                await self.pool.ask(step, device or None, **more)
        except ValueError as problem:
            await self._refuse(device, given, str(problem))
            return
        except Rejected as problem:
            if problem.reason not in ("bad-time", "not-lost", "held"):
                raise
            await self._refuse(device, given, problem.message)
            return
        await self.feed.refresh()
        self.redirect(f"{self.hub_auth.base_url}#devices-heading", status=303)

    async def _refuse(self, device: str, given: Mapping[str, str], wrong: str) -> None:
        self.set_status(400)
        await self._form(device, given, wrong)

    async def _form(self, device: str, given: Mapping[str, str], wrong: str) -> None:
        snapshot = await self.feed.refresh()
        listed = shapes.pool(snapshot, self.known())["devices"]
        chosen = [item for item in listed if item["id"] == device or not device]
        if device and not chosen:
            raise Rejected(f"There is no GPU {device[:80]!r} in this pool.", reason="no-device", status=404)
        ids = {item["id"] for item in chosen}
        sessions = [
            lease
            for lease in shapes.leases(snapshot, self.known())["leases"]
            if ids.intersection(lease["devices"])
        ]
        self.show(
            "drain.html",
            device=device,
            devices=chosen,
            sessions=sessions,
            warn={lease.id: lease.terms.warn for lease in snapshot.leases},
            ends=snapshot.mode == "reclaim",
            mode=snapshot.mode or "unknown",
            now=shapes.iso(snapshot.now),
            given=given,
            wrong=wrong,
            titles=self.titles(),
        )


def routes(base: str) -> list[tuple[Any, ...]]:
    """The addresses of these pages below the service's own, which is given as a regular expression."""
    return [(f"{base}limits", Limits), (f"{base}limits/edit", EditLimit), (f"{base}drain", Drain)]


# --- what the templates get ------------------------------------------------------------------------------


def _scope(row: LimitRow, snapshot: Snapshot, feed: Feed) -> dict[str, Any]:
    """A scope with a line for each key that says something: configured, edited, in force, and held now."""
    use, beyond = _use(row.scope, row.effective, feed.usage, snapshot.used)
    lines = []
    for field in limit_form.fields_of(row.scope):
        if field.name == "window":
            continue  # it is said with its GPU-hours
        values = [
            limit_form.words(field.name, limit) for limit in (row.configured, row.edited, row.effective)
        ]
        named = any(
            getattr(limit, field.name) not in (None, (), False)
            for limit in (row.configured, row.edited)
            if limit is not None
        )
        if named or use.get(field.name):
            lines.append(
                {
                    "label": field.label,
                    "configured": values[0] if row.configured is not None else "",
                    "edited": values[1] if row.edited is not None else "",
                    "effective": values[2],
                    "use": use.get(field.name, ""),
                    "beyond": field.name in beyond,
                }
            )
    return {
        "name": row.scope,
        "lines": lines,
        "edited": row.edited is not None,
        "configured": row.configured is not None,
        "actor": row.actor,
        "at": shapes.iso(row.at),
        "why": row.why,
        "over": feed.over.get(row.scope, ""),
    }


def _use(
    scope: str, limit: Limit | None, usage: Mapping[str, fairness.Usage], hours: Mapping[str, float]
) -> tuple[dict[str, str], set[str]]:
    """What a scope uses of its limit now, by key, and where that is more than it may; of all users the most."""
    every = scope == fairness.EVERY_USER
    scopes = [item for item in usage if item.startswith("user:")] if every else [scope]
    nothing = fairness.Usage()
    figures = {
        "sessions": {item: float(usage.get(item, nothing).sessions) for item in scopes},
        "gpus": {item: usage.get(item, nothing).gpus for item in scopes},
        "queued": {item: float(usage.get(item, nothing).queued) for item in scopes},
    }
    if limit is not None and limit.gpu_hours is not None:  # without a budget nobody counts them
        scopes = [item for item in hours if item.startswith("user:")] if every else [scope]
        figures["gpu_hours"] = {item: hours.get(item, 0.0) for item in scopes}
    use, beyond = {}, set()
    for name, of in figures.items():
        most = max(of, key=lambda item: of[item], default=scope)
        value, allowed = of.get(most, 0.0), getattr(limit, name, None)
        use[name] = f"{figure(value)} ({most[5:]})" if every and value else figure(value)
        if allowed is not None and value > allowed + 1e-9:
            beyond.add(name)
    return use, beyond


def _names(snapshot: Snapshot) -> dict[str, list[str]]:
    """Scopes that a form may suggest: of those who hold or wait."""
    users = {lease.user for lease in snapshot.leases}
    groups = {group for lease in snapshot.leases for group in lease.groups}
    known = {*(f"user:{name}" for name in users), *(f"group:{name}" for name in groups)}
    return {"suggested": sorted({"pool", fairness.EVERY_USER, *known, *snapshot.limits})}


def _scope_problem(scope: str) -> str:
    try:
        fairness.check_scope(scope)
    except ValueError as problem:
        return limit_form.in_a_form(scope, str(problem))
    return ""


def _moment(text: str) -> float | None:
    """Read the time of a drain: with its zone, or in UTC as the form's field sends it; empty: now."""
    if not text:
        return None
    try:
        return times.moment("The time", f"{text}+00:00")
    except ValueError:
        return times.moment("The time", text)


def _once(fields: list[tuple[str, str]], allowed: tuple[str, ...]) -> dict[str, str]:
    """The fields of a form by name, each at most once and none but these."""
    found: dict[str, str] = {}
    for name, value in fields:
        if name != "_xsrf" and (name not in allowed or name in found):
            raise Rejected(f"The form's field {name!a:.60} is unknown, or there twice.", reason="bad-request")
        found[name] = value
    return found
