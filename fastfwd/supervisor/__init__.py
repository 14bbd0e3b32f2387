"""The parent: holds every socket and every right, never touches a client's byte."""
