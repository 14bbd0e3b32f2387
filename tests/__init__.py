"""The test suite: real sockets and the real program; see forwarder.py for the harness."""
