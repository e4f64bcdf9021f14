"""Counts of lost workers: who is gone for a lease, had something to lose, and is connected nowhere else."""

from __future__ import annotations

import pytest
from engine_parts import NOW, connect, new_desk
from engine_rig import uid

from givalia_core.clock import SECOND_US
from givalia_core.engine.losses import Losses


@pytest.mark.parametrize(("capacity", "held", "lost"), [(1, 0, 1), (0, 1, 1), (0, 0, 0)])
def test_a_worker_that_had_drained_is_no_loss(capacity: int, held: int, lost: int) -> None:
    losses, session = Losses(), connect(new_desk(), capacity=capacity)
    session.rooms["greenlet"].held = held

    losses.leave(session, NOW.mono_us)
    losses.sweep(NOW.mono_us, ())

    assert losses.workers == lost


def test_a_worker_is_lost_once_it_is_gone_for_long_enough_and_counted_once() -> None:
    losses = Losses()
    losses.leave(connect(new_desk()), 100)

    losses.sweep(99, ())
    assert (losses.workers, losses.gone) == (0, {uid(10): 100})
    losses.sweep(100, ())
    losses.sweep(200, ())

    assert (losses.workers, losses.gone) == (1, {})


def test_a_worker_that_has_come_back_is_not_lost() -> None:
    losses = Losses()
    losses.leave(connect(new_desk()), 100)

    losses.join(uid(10))
    losses.join(uid(99))
    losses.sweep(1_000, ())

    assert losses.workers == 0


def test_a_worker_that_is_connected_elsewhere_is_not_lost() -> None:
    losses, desk = Losses(), new_desk()
    for conn in (10, 11):
        losses.leave(connect(desk, conn), 100)

    losses.sweep(100, {uid(10)})

    assert (losses.workers, losses.gone) == (1, {})


def test_a_pause_of_this_process_counts_for_no_worker() -> None:
    losses = Losses()
    losses.leave(connect(new_desk()), 100)

    losses.extend(60 * SECOND_US)
    losses.sweep(100 + 60 * SECOND_US - 1, ())
    assert losses.workers == 0
    losses.sweep(100 + 60 * SECOND_US, ())

    assert losses.workers == 1
