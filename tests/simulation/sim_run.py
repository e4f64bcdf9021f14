"""One seed, one run: users and faults at random, then healing, draining, a last check, and the verdict.

Each seed draws its own conditions: the kinds of faults, their rates, and the limits. A run with all faults at once seldom gets
far enough to meet the rare ones, so most runs have a few.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from unittest import mock

from sim_checker import Violation, check
from sim_client import SimClient
from sim_history import History, Op
from sim_server import SimServer, Stuck
from sim_setup import ATTEMPTS, BACKOFF_MAX_US, BACKOFF_US, MODULES, SPECIFIERS, VERSIONS
from sim_worker import Habits, SimWorker
from sim_world import Network, World

from givalia_core import timers
from givalia_core.clock import SECOND_US
from givalia_core.engine import failures, steps
from givalia_core.model import RUNNING, WAITING
from givalia_core.policy import Policy
from givalia_core.protocol.messages import Announce, Cancel, Enq, Ext, Join, Kind, Requeue, Stat, Wait

NAMES = ("any", "any", "any", "w1", "w2", "nobody")
KEYS = ("cart", "session", "build", "hook")
ACTIVE_S = 20
DRAIN_S = 400


class Weather(NamedTuple):
    """The draw of one seed: sizes, and the rate of each fault."""

    lease_us: int
    prefix: int
    slow: float
    breaks: float
    cut_chance: float
    faults: int
    kinds: tuple[str, ...]
    habits: Habits
    has_gap: bool
    can_reboot: bool
    commands: int


class Run(NamedTuple):
    """The result of a run."""

    seed: int
    history: History
    violations: list[Violation]

    def report(self) -> str:
        """For the person whose change broke it: what is wrong, what led there, and how to see it again."""
        shown = list(dict.fromkeys(f"{wrong.invariant}: {wrong.text}" for wrong in self.violations))[:10]
        first = next((wrong.job for wrong in self.violations if wrong.job is not None), None)
        return "\n".join(
            [
                f"seed {self.seed}: {len(self.violations)} violations",
                *shown,
                "the last lines of the first one's job and all faults:" if first else "the last lines:",
                *self.history.lines(first),
                f"replay: GIVALIA_SIM_SEED={self.seed} python -m pytest tests/simulation/test_simulation.py -q",
            ]
        )


def draw_weather(world: World) -> Weather:
    """Return the draw of this seed."""
    rng = world.rng
    all_kinds = list(FAULTS)
    kinds = rng.sample(all_kinds, rng.randint(1, 4)) if rng.random() < 0.8 else all_kinds
    weather = Weather(
        lease_us=rng.choice((5, 5, 8, 12)) * SECOND_US,
        prefix=rng.choice((1, 2, 3, 6, 4_000)),
        slow=rng.choice((0.0, 0.02, 0.1)),
        breaks=rng.choice((0.0, 0.0, 0.02, 0.08)),
        cut_chance=rng.choice((0.0, 0.0, 0.02, 0.06)),
        faults=rng.randint(0, 12),
        kinds=tuple(kinds),
        habits=rng.choice(
            (
                Habits(),
                Habits(fails=0.5, fails_for_good=0.02),
                Habits(runs_long=0.4),
                Habits(0.0, 0.0, 0.3),
                Habits(runs_long=0.2, is_replaced=0.25, kills_process=0.5),
            )
        ),
        has_gap=rng.random() < 0.1,
        can_reboot=rng.random() < 0.3,
        commands=rng.randint(50, 100),
    )
    if rng.random() < 0.25:  # Leases are worth their name: jobs run for as long, and the paths of their workers die.
        long = Habits(fails=0.05, releases=0.0, runs_long=0.8)
        faults, lease_us = rng.randint(8, 16), rng.choice((8, 12)) * SECOND_US
        return weather._replace(habits=long, kinds=("starve_workers",), faults=faults, lease_us=lease_us)
    return weather


class Scene:
    """Everything of one run: the server, its users, its workers and what befalls them."""

    def __init__(self, seed: int) -> None:
        self.world = World(seed)
        self.weather = draw_weather(self.world)
        policy = Policy(
            lease_us=self.weather.lease_us,
            max_attempts=ATTEMPTS,
            backoff_us=BACKOFF_US,
            backoff_max_us=BACKOFF_MAX_US,
            retain_us=self.world.rng.choice((60, 3_600)) * SECOND_US,
            retain_max=self.world.rng.choice((5, 1_000)),
            retain_dead_max=self.world.rng.choice((2, 1_000)),
        )
        self.server = SimServer(self.world, policy)
        self.server.store.cut_chance = self.weather.cut_chance
        self.server.can_reboot = self.weather.can_reboot
        self.network = Network(self.world, self.server, self.weather.slow, self.weather.breaks)
        self.clients = [SimClient(self.world, self.network, f"client{number}", is_old=number == 2) for number in range(3)]
        self.workers = [
            self._worker("any", ["Mail", "Rebuild"], 2),
            self._worker("w1", ["Mail"], 1, only_targeted=self.world.chance(0.3)),
            self._worker("w2", ["Mail", "Rebuild"], self.world.rng.choice((1, 3))),
        ]
        self.known: list[bytes] = []
        self.cancelled: list[bytes] = []

    def _worker(
        self,
        name: str,
        modules: list[str],
        capacity: int,
        only_targeted: bool = False,
        versions: Sequence[str] = VERSIONS,
    ) -> SimWorker:
        announced = [Announce(module, "sim", "", max_attempts=MODULES[module]) for module in modules]
        join = Join(name, b"", only_targeted)
        lease_us, habits = self.weather.lease_us, self.weather.habits
        return SimWorker(self.world, self.network, join, announced, capacity, lease_us, habits, versions)

    # What users do.

    def command(self) -> None:
        """One frame of one client."""
        rng = self.world.rng
        client = rng.choice(self.clients)
        kind = rng.choices(list(COMMANDS), [share for share, _ in COMMANDS.values()])[0]
        count = rng.randint(2, 5) if kind is not Kind.WAIT and rng.random() < 0.15 else 1
        client.call(kind, [COMMANDS[kind][1](self) for _ in range(count)])

    def _enq(self) -> Enq:
        rng = self.world.rng
        job_id = rng.randbytes(16)
        self.known.append(job_id)
        module = rng.choices(list(MODULES), (6, 3, 1))[0]
        delay_us = self._delay_us()
        return Enq(
            job_id,
            module,
            delay_us,
            rng.choice(KEYS) if rng.random() < 0.6 else None,
            rng.choice(NAMES),
            self._at_us() if rng.random() < 0.15 else None,
            rng.choice(("refuse", "refuse", "keep", "replace", "reschedule")),
            rng.choice((0, 0, 0, 5, -3)),
            rng.choice((None, None, 1, 2, 4)),
            None,
            self.world.between_us(0.1, 8.0) if rng.random() < 0.15 else None,
            0 if rng.random() < 0.3 else None,
            rng.choice(SPECIFIERS) if rng.random() < 0.3 else None,
            job_id[:4],
        )

    def _delay_us(self) -> int:
        between_us = self.world.between_us
        return self.world.rng.choice((0, 0, between_us(0.0, 2.0), between_us(0.0, 2.0), between_us(1.0, 12.0)))

    def _at_us(self) -> int:
        return self.world.clock.read().wall_us + self.world.between_us(-3.0, 12.0)

    def _name(self) -> dict[str, Any]:
        rng = self.world.rng
        if self.known and rng.random() < 0.6:
            return {"id": rng.choice(self.known[-12:])}
        return {"key": rng.choice(KEYS)}

    def _cancel(self) -> Cancel:
        name = self._name()
        if "id" in name:
            self.cancelled.append(name["id"])
        return Cancel(self.world.rng.randbytes(16), running=self.world.chance(0.3), **name)

    def _ext(self) -> Ext:
        request = self.world.rng.randbytes(16)
        if self.world.chance(0.15):
            return Ext(request, at_us=self._at_us(), **self._name())
        delta_us = self.world.between_us(*((-6.0, 0.0) if self.world.chance(0.25) else (0.0, 6.0)))
        return Ext(request, delta_us=delta_us, **self._name())

    def _requeue(self) -> Requeue:
        delay_us = self.world.rng.choice((0, self.world.between_us(0.0, 5.0)))
        rng = self.world.rng
        name = {"id": rng.choice(self.cancelled)} if self.cancelled and rng.random() < 0.5 else self._name()
        return Requeue(rng.randbytes(16), delay_us=delay_us, **name)

    def _stat(self) -> Stat:
        return Stat(**self._name())

    def _wait(self) -> Wait:
        return Wait(**self._name())

    # What befalls them.

    def fault(self) -> None:
        """One fault of a kind that this weather has."""
        FAULTS[self.world.rng.choice(self.weather.kinds)](self)

    def _crash_server(self) -> None:
        self.server.crash(self.world.between_us(0.001, 3.0))

    def _cut_power(self) -> None:
        moment = self.world.rng.choice(("before", "after", "midway"))
        if moment == "midway":
            self.server.cut_midway = True
        else:
            self.server.store.next_cut = moment

    def _pause_server(self) -> None:
        self.server.pause(self._about_a_lease_us())

    def _fill_disk(self) -> None:
        self.server.store.is_full = True
        self.world.after(self.world.between_us(0.5, 4.0), self._free_disk)

    def _free_disk(self) -> None:
        self.server.store.is_full = False

    def _cut_connections(self) -> None:
        conns = self.network.open_connections()
        for conn in self.world.rng.sample(conns, min(len(conns), self.world.rng.randint(1, 3))):
            self.world.history.note("net", "fault", "cut", value=conn.peer.name)
            conn.cut()

    def _stall_connections(self) -> None:
        """Hold up what clients send, for longer than answers are remembered only if they say how long they wait."""
        conns = [conn for conn in self.network.open_connections() if isinstance(conn.peer, SimClient)]
        for conn in self.world.rng.sample(conns, min(len(conns), self.world.rng.randint(1, 3))):
            is_long = isinstance(conn.peer, SimClient) and not conn.peer.is_old and self.world.chance(0.4)
            length_us = self.world.between_us(*((125.0, 160.0) if is_long else (5.0, 30.0)))
            self.world.history.note("net", "fault", "stall", value=conn.peer.name)
            self.network.stall(conn, length_us)

    def _starve_workers(self) -> None:
        """The path to some workers dies without a word, for longer than a lease perhaps; answers are late before it."""
        conns = [conn for conn in self.network.open_connections() if isinstance(conn.peer, SimWorker)]
        for conn in self.world.rng.sample(conns, min(len(conns), self.world.rng.randint(1, 2))):
            self.world.history.note("net", "fault", "starve", value=conn.peer.name)
            uniform = self.world.rng.uniform
            lengths = (uniform(0.0, 0.4), uniform(0.2, 0.8), uniform(0.3, 2.2))
            conn.starve(*(round(self.weather.lease_us * length) for length in lengths))

    def _crash_worker(self) -> None:
        self.world.rng.choice(self.workers).crash(self.world.between_us(0.1, 3.0))

    def _pause_worker(self) -> None:
        self.world.rng.choice(self.workers).pause(round(self.weather.lease_us * self.world.rng.uniform(0.3, 2.2)))

    def _about_a_lease_us(self) -> int:
        return round(self.weather.lease_us * self.world.rng.uniform(0.1, 1.7))

    def _step_wall(self) -> None:
        self.world.step_wall(self.world.rng.choice((1.0, -1.0, 3_600.0, -3_600.0)))

    def _slew_wall(self) -> None:
        for number in range(30):
            self.world.after(number * 300_000, self._slew_once)

    def _slew_once(self) -> None:
        if not self.world.history.healed_us:
            self.world.step_wall(0.09)

    # From start to end.

    def play(self) -> None:
        """Commands and faults over the active time."""
        world, rng = self.world, self.world.rng
        self.server.start()
        for worker in self.workers:
            worker.start()
        gap_us = 130 * SECOND_US if self.weather.has_gap else 0
        at_us = 0
        for _ in range(self.weather.commands):
            if rng.random() < 0.7:
                at_us = rng.randint(0, ACTIVE_S * SECOND_US)
            world.after(at_us + (gap_us if at_us > ACTIVE_S * SECOND_US // 2 else 0), self.command)
        for _ in range(self.weather.faults):
            at_us = rng.randint(0, ACTIVE_S * SECOND_US)
            world.after(at_us + (gap_us if at_us > ACTIVE_S * SECOND_US // 2 else 0), self.fault)
        world.run_until(world.now_us + ACTIVE_S * SECOND_US + gap_us)

    def heal(self) -> None:
        """No more faults, every name, module and version is served, every job succeeds, and the wall clock is at its latest."""
        world = self.world
        world.history.healed_us = max(world.now_us, self.network.stalled_until_us)
        world.step_wall((world.wall_ahead_most_us - world.wall_ahead_us) / SECOND_US)
        world.history.note("world", "fault", "heal")
        store = self.server.store
        store.cut_chance, store.next_cut, store.is_full = 0.0, None, False
        self.server.cut_midway = False
        self.network.heal()
        well = Habits(0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0)
        self.workers += [
            self._worker(name, list(MODULES), 4, versions=[version]) for name in sorted(set(NAMES)) for version in VERSIONS
        ]
        for worker in self.workers[3:]:
            worker.start()
        for worker in self.workers:
            worker.habits = well

    def drain(self) -> None:
        """Let everything come to its end."""
        world = self.world
        until_us = world.now_us + DRAIN_S * SECOND_US
        while world.now_us < until_us and not self._is_drained():
            world.after(SECOND_US, lambda: None)
            world.run_until(world.now_us + SECOND_US)
        if not self._is_drained():
            live = [job.id.hex()[:8] for job in self.server.store.memory._jobs.values() if job.is_live]
            world.history.blame("I14", f"after {DRAIN_S} s of calm there are live jobs ({live}) or calls without an answer")

    def _is_drained(self) -> bool:
        is_stalled = self.network.stalled_until_us + SECOND_US > self.world.now_us
        if is_stalled or not self.server.is_up or not all(client.is_idle for client in self.clients):
            return False
        counts = self.server.store.memory._counts
        return not any(count for (_, state), count in counts.items() if state in (WAITING, RUNNING))

    def look(self) -> list[Op]:
        """The last look: what the server says of every job."""
        ops = self.clients[0].call(Kind.STAT, [Stat(id=job_id) for job_id in self.known]) if self.known else []
        self.world.run_until(self.world.now_us + 5 * SECOND_US, lambda: self.clients[0].is_idle)
        return ops


COMMANDS: dict[Kind, tuple[int, Callable[[Scene], Any]]] = {
    Kind.ENQ: (45, Scene._enq),
    Kind.CANCEL: (14, Scene._cancel),
    Kind.EXT: (16, Scene._ext),
    Kind.REQUEUE: (11, Scene._requeue),
    Kind.STAT: (9, Scene._stat),
    Kind.WAIT: (8, Scene._wait),
}
FAULTS: dict[str, Callable[[Scene], None]] = {
    "crash_server": Scene._crash_server,
    "cut_power": Scene._cut_power,
    "pause_server": Scene._pause_server,
    "fill_disk": Scene._fill_disk,
    "cut_connections": Scene._cut_connections,
    "stall_connections": Scene._stall_connections,
    "starve_workers": Scene._starve_workers,
    "crash_worker": Scene._crash_worker,
    "pause_worker": Scene._pause_worker,
    "step_wall": Scene._step_wall,
    "slew_wall": Scene._slew_wall,
}


@contextmanager
def small_limits(weather: Weather) -> Iterator[None]:
    """The engine's own limits, so small that a short run meets them."""
    with ExitStack() as stack:
        for module, name, value in (
            (timers, "PREFIX_TIMERS", weather.prefix),
            (failures, "RELEASES_MAX", 3),
            (steps, "EXPIRED_AT_ONCE", 2),
            (steps, "FORGOTTEN_AT_ONCE", 2),
        ):
            stack.enter_context(mock.patch.object(module, name, value))
        yield


def simulate(seed: int, prepare: Callable[[Scene], None] = lambda scene: None) -> Run:
    """Play one seed to its end and judge it."""
    scene = Scene(seed)
    prepare(scene)
    history = scene.world.history
    last: list[Op] = []
    with small_limits(scene.weather):
        try:
            scene.play()
            scene.heal()
            scene.drain()
            last = scene.look()
        except Stuck as stuck:
            history.blame("I14", str(stuck))
        except Exception:
            history.blame("raised", traceback.format_exc())
    violations = check(history, scene.server.store.memory, last, scene.world.clock)
    return Run(seed, history, violations)
