"""The queue in PostgreSQL, shared by any number of Givalia servers; and jobs in your own transactions."""

from givalia_postgres.store import Postgres
from givalia_postgres.transaction import Enqueued, cancel, enq, ext

__all__ = ["Enqueued", "Postgres", "cancel", "enq", "ext"]
