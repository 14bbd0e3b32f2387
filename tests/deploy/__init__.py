"""The files in deploy/: each is read by the program that it is for."""
