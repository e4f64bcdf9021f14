"""A copy of the server's store as a blocking client receives it, part by part."""

from __future__ import annotations

from collections.abc import Iterator

from givalia_core.client.client import Client
from givalia_core.client.pending import Pending
from givalia_core.client.readings import record
from givalia_core.clock import new_id
from givalia_core.protocol.answers import BackupPart
from givalia_core.protocol.codec import checked
from givalia_core.protocol.messages import Backup, Kind


def parts(client: Client) -> Iterator[BackupPart]:
    """Yield all parts of a copy of the server's store; a part whose answer is lost is requested again.

    Raises:
        BadRequest: The store is backed up in its own way; the message names it.
        Busy: Another backup is under way.
        NotFound: The server was started again meanwhile, or has discarded the copy. Begin again.
    """
    name = new_id()
    number = 0
    while True:
        part = client._transport.ask(Pending(Kind.BACKUP, [checked(Kind.BACKUP, Backup(name, number))], record(BackupPart)))  # noqa: SLF001 - The same room.
        yield part
        if part.is_last:
            return
        number += 1
