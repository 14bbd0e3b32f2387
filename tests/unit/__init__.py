"""Parts that need no running program: pure functions, and classes around one system call or two."""
