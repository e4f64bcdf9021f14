"""What goes over the wire: bytes to values and back, never a socket."""
