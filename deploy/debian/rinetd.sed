# And from that the unit of fastfwd-rinetd.
s/^Description=.*/Description=fastfwd in rinetd's place/
/^\[Unit\]/a ConditionPathExists=/etc/rinetd.conf
s/^\(Exec[A-Za-z]*=[-@:+!]*\)fastfwd /\1rinetd -c \/etc\/rinetd.conf /
# rinetd.conf has its log there; the file belongs to the account (tmpfiles.d/fastfwd-rinetd.conf).
/^\[Service\]/a ReadWritePaths=/var/log
