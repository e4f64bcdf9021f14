"""What finds the jobs of a store that appends them: derived from the jobs, never synced, made anew when in doubt."""
