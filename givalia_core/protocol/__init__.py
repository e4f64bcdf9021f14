"""The wire protocol: bytes to values and back, never a socket."""
