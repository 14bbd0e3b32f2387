"""Bytes, one direction at a time. Knows no epoll, no configuration, no log."""
