# What fish completes after fastfwd-stunnel2conf: copied as fastfwd.fish beside it.

complete -c fastfwd-stunnel2conf -F
complete -c fastfwd-stunnel2conf -s h -l help -d 'Show the options and exit'
complete -c fastfwd-stunnel2conf -s v -l version -d 'Show the version and exit'
