"""What keeps the index in step with the records beside the work: opening, recovery, the scrub, the sweeper, the check."""
