"""Every decision of the queue, pure: `turn.Engine` has the memory, `turn.turn` decides with it."""
