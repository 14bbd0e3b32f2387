"""The relay's contract, and its parts, over real sockets and pipes."""
