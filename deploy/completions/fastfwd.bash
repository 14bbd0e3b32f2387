# What bash completes after fastfwd, with the package bash-completion, which finds this file by the command's name.
# Copy to /usr/share/bash-completion/completions/ (or for one account ~/.local/share/bash-completion/completions/);
# shells that are started then have it.

_fastfwd() {
    # The names come from _init_completion, which sets them here.
    # shellcheck disable=SC2034
    local cur prev words cword split
    _init_completion -s -n : || return

    case $prev in
    -c | --conf-file)
        _filedir
        return
        ;;
    --sessions) return ;;
    esac
    $split && return

    local i explain=0 file=/etc/fastfwd.conf
    [[ -e $file ]] || file=/etc/rinetd.conf
    for ((i = 1; i < cword; i++)); do
        case ${words[i]} in
        -c | --conf-file) file=${words[i + 1]} ;;
        --conf-file=*) file=${words[i]#*=} ;;
        --explain) explain=$i ;;
        esac
    done
    ((explain && cword == explain + 1)) && return
    if ((explain && cword == explain + 2)) && [[ $cur != -* ]]; then
        # The names that forwards have in that file; not in those that it includes.
        mapfile -t COMPREPLY < <(compgen -W "$(
            sed -n 's/^[^#]*[[, ]name=\([A-Za-z0-9_.:-]*\).*/\1/p' "${file/#\~/$HOME}" 2>/dev/null
        )" -- "$cur")
        __ltrim_colon_completions "$cur"
        return
    fi
    mapfile -t COMPREPLY < <(compgen -W '-c --conf-file -f --foreground -t --test --explain --upgrade --status
        --doctor --sessions --lenient -h --help -v --version' -- "$cur")
} && complete -F _fastfwd fastfwd
