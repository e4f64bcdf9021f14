"""The due that a command gives a job."""

from __future__ import annotations

from givalia_core.clock import Now
from givalia_core.engine.records import Refusal
from givalia_core.errors import BadRequest
from givalia_core.model import TEN_YEARS_US, Job


def due_of(delay_us: int, at_us: int | None, now: Now) -> tuple[bool, int]:
    """Return `on_wall` and the due of a job that is due after a delay, or at an instant if one is given.

    Raises:
        Refusal: The instant is too far ahead.
    """
    if at_us is None:
        return False, now.timer_us + delay_us
    if at_us > now.wall_us + TEN_YEARS_US:
        raise Refusal(BadRequest("at is more than ten years ahead"), is_decided=True)
    return True, max(at_us, now.wall_us)


def moved_due(job: Job, delta_us: int | None, at_us: int | None, now: Now) -> tuple[bool, int]:
    """Return `on_wall` and the due of a waiting job that is moved by a length, or to an instant.

    Raises:
        Refusal: The new due is too far ahead.
    """
    if delta_us is None:
        return due_of(0, at_us, now)
    clock_us = now.wall_us if job.on_wall else now.timer_us
    due_at_us = max(max(job.due_at_us, clock_us) + delta_us, clock_us)
    if due_at_us > clock_us + TEN_YEARS_US:
        raise Refusal(BadRequest("the job would be due in more than ten years"), is_decided=True)
    return job.on_wall, due_at_us
