"""The page on which people choose what they are told."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from ..errors import Rejected
from ..notices import CHANNELS, EVENTS, Choice, NoAddress, NotTaken, check_address
from ..notices.settings import GPUPoolNotices
from .base import signed_in
from .notices import person_address
from .pages import Page


class NoticesPage(Page):
    """``GET`` and ``POST notices``: events and channels with a box for each, and an address where that is allowed."""

    allowed = ("GET", "POST")

    @property
    def notices(self) -> GPUPoolNotices:
        found: GPUPoolNotices = self.settings["notices"]
        return found

    @signed_in
    async def get(self) -> None:
        await self._show(kept=self.query("kept").get("kept") == "1")

    async def post(self) -> None:
        fields = self.read_form()
        await self._keep(fields)

    @signed_in
    async def _keep(self, fields: list[tuple[str, str]]) -> None:
        person = self.known()
        if person.name is None:
            raise Rejected("Only a person can choose what they are told.", reason="forbidden", status=403)
        offered = self.notices.rules().events
        try:
            choice = self._read(fields, offered)
        except ValueError as problem:
            self.set_status(400)
            await self._show(problem=str(problem))
            return
        await self.pool.ask("choose", person.name, choice)
        self.redirect(f"{self.hub_auth.base_url}notices?kept=1", status=303)

    def _read(self, fields: list[tuple[str, str]], offered: Any) -> Choice:
        """The choice in a form.  Raises ValueError with a sentence for what no form of ours holds."""
        wanted: set[tuple[str, str]] = set()
        address = ""
        for name, value in fields:
            if name == "address":
                address = check_address(value, tuple(self.notices.mail_domains))
            elif name in CHANNELS and value in EVENTS:
                wanted.add((name, value))
            elif name != "_xsrf":
                raise ValueError("The form holds something that is no choice of this page.")
        unwanted = {
            channel: frozenset(
                event
                for event, channels in offered.items()
                if channel in channels
                and event in EVENTS
                and (channel, event) not in wanted
                and event not in self.notices.mandatory
            )
            for channel in CHANNELS
        }
        return Choice(unwanted=unwanted, address=address)

    async def _show(self, *, kept: bool = False, problem: str = "") -> None:
        person, notices = self.known(), self.notices
        found: Choice | None = None
        if person.name is not None:
            found = await self.pool.ask("choice", person.name)
        offered = notices.rules().events
        there = {name: words for name, words in CHANNELS.items() if any(name in c for c in offered.values())}
        address = ""
        if notices.mail_server and person.name is not None:
            with suppress(NoAddress, NotTaken):  # there is none, or nobody says now
                address = await person_address(notices, person.name, Choice())
        self.show(
            "notices.html",
            channels=there,
            events=EVENTS,
            offered=offered,
            mandatory=notices.mandatory,
            choice=found or Choice(),
            known=found is not None,
            domains=notices.mail_domains,
            address=address,
            kept=kept,
            problem=problem,
        )
