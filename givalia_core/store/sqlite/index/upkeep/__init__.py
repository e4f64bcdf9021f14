"""Keeps the index in step with the records, beside the work: recovery, the scrub, the sweeper, the check."""
