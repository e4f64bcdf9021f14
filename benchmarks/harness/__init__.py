"""The common parts of all benchmarks: a server and workers as processes, a ledger that proves each run, a table of figures.

Every printed figure was measured in this run, beside a calibration of the machine it ran on. A load raises `Broken` unless
each of its jobs ran once, and none before its due: its figures would mean nothing. The harness never touches a server, store
or file that it did not make.
"""

from givalia_core import Client
from harness.figures import MIB, Figure, aligned, in_turn, mapped, medians, quantile, shown, table, unmapped, verdict
from harness.goals import Goal, Peer, goals_of
from harness.ledger import Broken, Ledger
from harness.load import PART, enq_in_frames, enq_in_parts, jobs_of, key_of, latencies, params_of
from harness.machine import calibrate, round_trip_ms, versions
from harness.program import Beside, Option, Run, Section, arguments, flags, main, options_of, report, run
from harness.rig import HOST, MODULE, START_S, Rig, cpu_s, mapped_bytes, rss_bytes
from harness.words import say

__all__ = [
    "HOST",
    "MIB",
    "MODULE",
    "PART",
    "START_S",
    "Beside",
    "Broken",
    "Client",
    "Figure",
    "Goal",
    "Ledger",
    "Option",
    "Peer",
    "Rig",
    "Run",
    "Section",
    "aligned",
    "arguments",
    "calibrate",
    "cpu_s",
    "enq_in_frames",
    "enq_in_parts",
    "flags",
    "goals_of",
    "in_turn",
    "jobs_of",
    "key_of",
    "latencies",
    "main",
    "mapped",
    "mapped_bytes",
    "medians",
    "options_of",
    "params_of",
    "quantile",
    "report",
    "round_trip_ms",
    "rss_bytes",
    "run",
    "say",
    "shown",
    "table",
    "unmapped",
    "verdict",
    "versions",
]
