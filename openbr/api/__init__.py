"""Room 1, in: one module for each wire dialect; plain ASGI from socket to socket."""
