"""Every decision of the queue, pure: `core.Engine` decides, `turn.turn` drives it."""
