# Makes a unit of the Debian package from one in deploy/systemd: see rules.
# How to copy it.
1,/^$/{/^#/d}
# This package has its program on the path and its configuration where the program looks first; it runs beside rinetd.
s,/opt/fastfwd/bin/,,g
s, -c /etc/rinetd\.conf,,
/^Conflicts=.*rinetd\.service/d
/^After=/s/ rinetd\.service//
