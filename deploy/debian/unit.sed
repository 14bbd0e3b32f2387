# Makes a unit of the Debian package from one in deploy/systemd: see rules.
# How to copy it.
1,/^$/{/^#/d}
# The program is on the path, and the file is this package's own, whatever else is there.
s,/opt/fastfwd/bin/,,g
s, -c /etc/rinetd\.conf,,
/^Exec.* -c /!s,^\(Exec[A-Za-z]*=\)fastfwd ,\1fastfwd -c /etc/fastfwd.conf ,
# It runs beside rinetd; who wants it in rinetd's place has fastfwd-rinetd.
/^# It replaces rinetd/d
/^# The name alone: /d
/^Conflicts=.*rinetd\.service/d
/^After=/s/ rinetd\.service//
/^# For scripts that say `systemctl reload rinetd`/,/^#Alias=/d
