"""The smallest WorkModule, as in the README of 2012. Try it: givalia enq Sample --time 10 --params '"parameter sample"'."""

from givalia_core import WorkModule


class Sample(WorkModule):
    def process(self) -> None:
        # A module's output goes to the worker's standard output; `self.log.info(...)` goes to its log.
        print("Run job sample")
        print(self.params)
