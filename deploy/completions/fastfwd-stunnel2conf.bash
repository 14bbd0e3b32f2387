# What bash completes after fastfwd-stunnel2conf: copied as fastfwd.bash beside it.

_fastfwd_stunnel2conf() {
    # The names come from _init_completion, which sets them here.
    # shellcheck disable=SC2034
    local cur prev words cword
    _init_completion || return

    if [[ $cur == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W '-h --help -v --version' -- "$cur")
    else
        _filedir
    fi
} && complete -F _fastfwd_stunnel2conf fastfwd-stunnel2conf
