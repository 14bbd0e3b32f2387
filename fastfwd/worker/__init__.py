"""One process, one epoll loop: accept, access, dial, session."""
