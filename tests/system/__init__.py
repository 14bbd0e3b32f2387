"""System tests: each starts the real program on a configuration and talks to it over loopback."""
