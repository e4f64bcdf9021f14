"""The three clocks, and the timer clock across steps, restarts and reboots (K1, K2 and K6 of docs/delivery.md)."""

from __future__ import annotations

import os
from dataclasses import dataclass

from givalia_core.clock import SECOND_US, ManualClock, Mark, Reading, SystemClock, TimerClock, new_id

HOUR_US = 3_600 * SECOND_US
WALL_US = 1_750_000_000 * SECOND_US


@dataclass
class Machine:
    """A machine whose clocks are set by hand; a reboot names a new boot and begins uptime anew."""

    boot_id: str
    wall_us: int
    uptime_us: int

    def read(self) -> Reading:
        return Reading(self.wall_us, self.uptime_us, self.uptime_us)


def test_the_timer_clock_is_the_wall_clock_when_a_store_is_made() -> None:
    clock = ManualClock()

    now = TimerClock.start(clock, None).now(clock.read())

    assert now.timer_us == now.wall_us
    assert now.timer_ahead_us == 0


def test_the_timer_clock_advances_with_uptime_and_not_with_steps_of_the_wall() -> None:
    clock = ManualClock()
    timer = TimerClock.start(clock, None)
    start = timer.now(clock.read())

    for step_s in (3_600.0, -7_200.0, 50 * 365 * 86_400.0):
        before = timer.now(clock.read())
        clock.step_wall(step_s)
        after = timer.now(clock.read())
        assert after.timer_us == before.timer_us
        assert after.wall_us == before.wall_us + round(step_s * SECOND_US)
    clock.advance(10, us=7)

    assert timer.now(clock.read()).timer_us == start.timer_us + 10 * SECOND_US + 7


def test_leases_have_a_clock_that_no_step_moves() -> None:
    clock = ManualClock()
    before = clock.read().mono_us

    clock.step_wall(-1e6)

    assert clock.read().mono_us == before


def test_a_restart_within_one_boot_goes_on_by_uptime_whatever_the_wall_says() -> None:
    machine = Machine("boot-1", WALL_US, HOUR_US)
    timer = TimerClock.start(machine, None)
    before = timer.now(machine.read())
    mark = timer.mark(before)

    machine.uptime_us += 60 * SECOND_US
    machine.wall_us -= HOUR_US
    after = TimerClock.start(machine, mark).now(machine.read())

    assert after.timer_us == before.timer_us + 60 * SECOND_US


def test_after_a_reboot_it_is_the_wall_clock_and_the_stored_distance() -> None:
    machine = Machine("boot-1", WALL_US, HOUR_US)
    timer = TimerClock.start(machine, None)
    machine.wall_us += HOUR_US  # A step: the timer clock is an hour behind the wall from now on.
    mark = timer.mark(timer.now(machine.read()))

    rebooted = Machine("boot-2", machine.wall_us + 100 * SECOND_US, 5 * SECOND_US)
    timer = TimerClock.start(rebooted, mark)
    after = timer.now(rebooted.read())

    assert after.timer_us == mark.timer_us + 100 * SECOND_US
    assert after.timer_ahead_us == -HOUR_US
    rebooted.uptime_us += SECOND_US
    assert timer.now(rebooted.read()).timer_us == after.timer_us + SECOND_US


def test_after_a_reboot_it_is_never_behind_the_last_stored_instant() -> None:
    mark = Mark("boot-1", 0, WALL_US, WALL_US)
    rebooted = Machine("boot-2", WALL_US - 10 * HOUR_US, SECOND_US)

    timer = TimerClock.start(rebooted, mark)

    assert timer.now(rebooted.read()).timer_us == WALL_US
    rebooted.uptime_us += 3 * SECOND_US
    assert timer.now(rebooted.read()).timer_us == WALL_US + 3 * SECOND_US


def test_within_one_boot_it_is_never_behind_the_last_stored_instant() -> None:
    machine = Machine("boot-1", WALL_US, HOUR_US)
    mark = Mark("boot-1", WALL_US - HOUR_US, WALL_US + 5, WALL_US)

    assert TimerClock.start(machine, mark).now(machine.read()).timer_us == WALL_US + 5


def test_over_any_number_of_steps_restarts_and_reboots_it_never_goes_back() -> None:
    machine = Machine("boot-1", WALL_US, HOUR_US)
    mark = None
    last_us = 0
    for number in range(40):
        timer = TimerClock.start(machine, mark)
        now = timer.now(machine.read())
        assert now.timer_us >= last_us
        machine.uptime_us += SECOND_US
        assert timer.now(machine.read()).timer_us == now.timer_us + SECOND_US
        now = timer.now(machine.read())
        last_us, mark = now.timer_us, timer.mark(now)
        machine.wall_us += (number % 3 - 1) * HOUR_US
        if number % 4 == 3:
            machine.boot_id, machine.uptime_us = f"boot-{number}", SECOND_US


def test_the_clocks_of_this_machine_go_forward_in_microseconds() -> None:
    clock = SystemClock()

    first, second = clock.read(), clock.read()

    assert second.uptime_us >= first.uptime_us > 0
    assert second.mono_us >= first.mono_us > 0
    assert first.wall_us > WALL_US
    assert clock.boot_id == SystemClock().boot_id


def test_a_mark_carries_the_length_of_the_leases_that_were_granted() -> None:
    timer = TimerClock.start(ManualClock(), None)

    assert timer.mark(timer.now(ManualClock().read()), 30_000_000).lease_us == 30_000_000


def test_ids_are_all_different_also_between_a_process_and_its_fork() -> None:
    new_id()
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.write(writing, b"".join(new_id() for _ in range(100)))
        os._exit(0)
    os.waitpid(child, 0)
    theirs = os.read(reading, 1_600)
    os.close(reading)
    os.close(writing)

    ids = [new_id() for _ in range(5_000)] + [theirs[start : start + 16] for start in range(0, 1_600, 16)]

    # Their second halves are all random but for two bits.
    assert len({each[8:] for each in ids}) == len(ids)
    assert {each[6] >> 4 for each in ids} == {7}
    assert {each[8] >> 6 for each in ids} == {2}


def test_a_relative_due_is_told_the_same_at_each_call_until_a_step_is_noticed() -> None:
    clock = ManualClock()
    timer = TimerClock.start(clock, None)
    first = timer.now(clock.read()).told_ahead_us

    clock.step_wall(0.000_003)
    jittered = timer.now(clock.read()).told_ahead_us
    clock.step_wall(0.2)
    stepped = timer.now(clock.read()).told_ahead_us

    assert jittered == first
    assert stepped == first - 200_003


def test_dues_are_told_the_same_after_a_restart() -> None:
    clock = ManualClock()
    timer = TimerClock.start(clock, None)
    before = timer.now(clock.read())
    clock.step_wall(0.000_003)
    mark = timer.mark(timer.now(clock.read()))

    after = TimerClock.start(clock, mark).now(clock.read())

    assert after.told_ahead_us == before.told_ahead_us
