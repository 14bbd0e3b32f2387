# And from that the unit of fastfwd-rinetd.
s/^Description=.*/Description=fastfwd in rinetd's place/
/^\[Unit\]/a ConditionPathExists=/etc/rinetd.conf
s,^\(Exec[A-Za-z]*=\)fastfwd -c /etc/fastfwd.conf ,\1rinetd -c /etc/rinetd.conf ,
