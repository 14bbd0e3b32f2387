"""What happened: the shared scoreboard and the connection log."""
