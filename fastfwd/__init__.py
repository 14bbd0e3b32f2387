"""fastfwd: a TCP forwarder that takes rinetd's configuration and uses every core."""

__version__ = "0.2.0"
