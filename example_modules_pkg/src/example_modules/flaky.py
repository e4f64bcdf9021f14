"""A job that fails on purpose, to show retries. Try it: givalia enq Flaky --params '{"fail_times": 2}' --wait."""

from typing import Any

from givalia_core import WorkModule


class Flaky(WorkModule):
    # Options of this kind of job, unless its enq says otherwise. A worker announces them to the server.
    max_attempts = 4
    backoff = (0.2, 5.0)  # 0.2 s before the second attempt, then doubled each time, never more than 5 s.

    def process(self) -> dict[str, Any]:
        # Every attempt is a fresh instance, so `self` remembers nothing; but each attempt knows its number.
        fail_times = self.params["fail_times"]
        if self.job.attempt <= fail_times:
            # Any exception is a failed attempt. Catch nothing: raise, and the server tries again later, until
            # `max_attempts` is reached; then the job is dead, and `givalia requeue` can revive it.
            raise RuntimeError(f"failing on purpose, attempt {self.job.attempt} of the {fail_times} that fail")
        return {"attempts": self.job.attempt}
