"""`fastfwd --doctor`: what this machine can hold with a configuration, and what moves that."""
